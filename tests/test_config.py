"""The config: what is accepted, what is refused with which message, and that no input ends in a traceback."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from utils.config import Config, LossWeights, PhaseConfig
from utils.config_files import AS_BEFORE, DEFAULT_CONFIG, config_to_dict, load_config, save_config
from utils.errors import UserError
from utils.plain_yaml import parse_yaml

DEFAULT_TEXT = DEFAULT_CONFIG.read_text(encoding="utf-8")
CONFIGS = [DEFAULT_CONFIG, *sorted((DEFAULT_CONFIG.parent / "configs").glob("*.yml"))]
SECTIONS = list(Config.model_fields)
NO_WEIGHTS = ", ".join(f"{term}: 0" for term in LossWeights.model_fields)
KEYS = [
    f"{section}.{key}" if not isinstance(value, dict) else f"{section}.{key}.{inner}"
    for section, keys in config_to_dict(load_config()).items()
    if section != "phases"
    for key, value in keys.items()
    for inner in (value if isinstance(value, dict) else [None])
]


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a config of the given text or bytes."""

    def load_text(text, *overrides, resume=False):
        path = tmp_path / "some.yml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return load_config(path, overrides, resume)

    return load_text


def faults(*overrides, path=DEFAULT_CONFIG):
    """Return the lines of the message with which a config is refused."""
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    return str(error.value).split("\n")


def fault(*overrides):
    """Return the message with which config.yml with these overrides is refused. Checks that it is one line."""
    lines = faults(*overrides)
    assert len(lines) == 1, lines
    return lines[0]


def with_line(key, value):
    """Return the text of config.yml with another value in the first line with this key."""
    text, count = re.subn(rf"(?m)^([ -]+{key}:) [^#\n]*", rf"\1 {value} ", DEFAULT_TEXT, count=1)
    assert count == 1
    return text


# --- accepted values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_of_the_project_loads(path):
    assert isinstance(load_config(path), Config)


def test_default_config_holds_what_its_issue_says():
    config = load_config()
    assert (config.data.image_size, config.model.depth, config.train.batch_size) == (256, 7, 18)
    assert [(phase.steps, phase.lr) for phase in config.phases] == [(200_000, 2e-4), (100_000, 5e-5)]
    assert [phase.freeze_encoder_batch_norm for phase in config.phases] == [False, True]
    of_the_paper = {"valid": 1, "hole": 6, "perceptual": 0.05, "style": 120, "tv": 0.1}
    assert {term: weight for term, weight in config.loss.weights if weight} == of_the_paper
    assert config.model.base == "none"


def comments_of(text):
    """Return the comment after each key of a config by dotted path; for items of lists, by phases.KEY."""
    found, sections = {}, []
    for line in text.splitlines():
        match = re.fullmatch(r"( *)(- )?(\w+):[^#]*?(?:  # (.*)|# (.*))?", line)
        if not match:
            continue
        indent = len(match[1]) + len(match[2] or "")
        sections = [(depth, name) for depth, name in sections if depth < indent] + [(indent, match[3])]
        comment = match[4] or match[5]
        if comment:
            found[".".join(name for _, name in sections)] = comment.strip()
    return found


def descriptions_of(model, prefix=""):
    for key, field in model.model_fields.items():
        if field.description:
            yield prefix + key, field.description
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from descriptions_of(field.annotation, f"{prefix}{key}.")


def test_comments_of_config_yml_are_the_descriptions_of_the_schema():
    described = {**dict(descriptions_of(Config)), **dict(descriptions_of(PhaseConfig, "phases."))}
    comments = comments_of(DEFAULT_TEXT)
    assert set(KEYS) <= set(comments)  # every key has a comment
    assert {key: described[key] for key in comments} == comments


@pytest.mark.parametrize("path", CONFIGS[1:], ids=lambda path: path.name)
def test_a_config_of_the_project_says_only_what_differs(path):
    def leaves(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict) and prefix + key != "masks.style":
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    default = dict(leaves(parse_yaml(DEFAULT_TEXT, "config.yml")))
    own = dict(leaves(parse_yaml(path.read_text(encoding="utf-8"), str(path))))
    assert own.keys() <= default.keys()
    assert [key for key, value in own.items() if value == default[key]] == []


def test_values_have_the_types_of_the_schema():
    config = load_config(overrides=["loss.weights.tv=1", "data.crop_scale=[1, 1]", "masks.dilate=[0, 1e1]"])
    assert type(config.loss.weights.tv) is float
    assert config.data.crop_scale == (1.0, 1.0)
    assert all(type(end) is float for end in config.data.crop_scale)
    assert all(type(side) is int for side in config.masks.dilate)


@pytest.mark.parametrize(("text", "value"), [("2e-4", 2e-4), ("2E-4", 2e-4), ("1.5e3", 1500), (".5", 0.5), ("1_0", 10)])
def test_numbers_as_people_write_them(load, text, value):
    assert load(with_line("lr", text)).phases[0].lr == value
    assert load_config(overrides=[f"phases.0.lr={text}"]).phases[0].lr == value


@pytest.mark.parametrize("text", ["1e5", "100000", "100_000", "1.0e5", "100000.0"])
def test_a_whole_number_may_be_written_as_a_float(load, text):
    steps = load(with_line("steps", text)).phases[0].steps
    assert steps == 100_000
    assert type(steps) is int


def test_home_and_variables_are_expanded_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "disk")
    for key in ("run.dir", "data.train", "data.val", "masks.train_dir", "masks.val_dir", "loss.vgg16"):
        section, name = key.split(".")
        for text, expanded in (("~/a", "/home/me/a"), ("/x/$PLACE/a", "/x/disk/a"), ("${PLACE}s", "disks")):
            assert getattr(getattr(load_config(overrides=[f"{key}={text}"]), section), name) == expanded


def test_holes_of_any_colour(load):
    assert load(with_line("hole", "'#fF0000'")).masks.hole == load_config(overrides=["masks.hole=#fF0000"]).masks.hole
    with pytest.raises(UserError, match="masks.hole: null must be black, white or a colour such as '#ff0000'"):
        load(with_line("hole", "#ff0000"))  # without quotes YAML reads it as a comment


def test_overrides_win_and_the_last_of_one_key_counts(load):
    config = load(DEFAULT_TEXT, "train.batch_size=3", "loss.weights.tv=2", "train.batch_size=5")
    assert (config.train.batch_size, config.loss.weights.tv) == (5, 2)
    assert config.loss.weights.style == 120


def test_an_override_mends_the_file(load):
    for resume in (False, True):
        assert load(with_line("seed", "none"), "run.seed=3", resume=resume).run.seed == 3
        assert load(DEFAULT_TEXT.replace("  seed:", "  # seed:"), "run.seed=3", resume=resume).run.seed == 3


def test_a_config_file_says_only_what_differs(load):
    config = load("loss:\n  weights: {tv: 3}\nphases:\n  - {steps: 4, lr: 1e-3}\n", "run.seed=5")
    expected = load_config(overrides=["loss.weights.tv=3", "phases=[{steps: 4, lr: 1e-3}]", "run.seed=5"])
    assert config == expected
    assert len(config.phases) == 1  # a list replaces the previous list


def test_an_override_of_one_phase_changes_no_other():
    aliased = "phases=[{steps: 1, lr: 1, loss_weights: &a {tv: 1}}, {steps: 2, lr: 2, loss_weights: *a}]"
    config = load_config(overrides=[aliased, "phases.1.lr=3", "phases.0.loss_weights.tv=4", "phases.0.image_size=128"])
    assert [phase.lr for phase in config.phases] == [1, 3]
    assert [phase.loss_weights for phase in config.phases] == [{"tv": 4}, {"tv": 1}]
    assert [phase.image_size for phase in config.phases] == [128, None]


def test_an_override_of_one_section_does_not_reach_what_an_alias_shares(load):
    text = DEFAULT_TEXT.replace("  weights:", "  weights: &w", 1)
    text = re.sub(r"(?m)^    freeze_encoder_batch_norm:.*", "    loss_weights: *w", text)
    config = load(text, "loss.weights.tv=9", resume=True)
    assert config.loss.weights.tv == 9
    assert config.phases[1].loss_weights["tv"] == 0.1


def test_an_override_can_give_several_keys_of_a_section():
    config = load_config(overrides=["loss={weights: {valid: 2, tv: 0}}"])
    assert dict(config.loss.weights) == {**dict(load_config().loss.weights), "valid": 2, "tv": 0}


@pytest.mark.parametrize("name", ["1e3", "2024", "yes", "null", "1:30", "a b", "a: b", "#1", "@x", "[x", "a=b", "\\x"])
def test_a_path_on_the_command_line_is_taken_as_it_is(name):
    assert load_config(overrides=[f"run.dir={name}"]).run.dir == name


def test_aliases_merge_keys_and_a_byte_order_mark(load):
    text = with_line("lr", "&lr 3e-4").replace("    lr: 5e-5", "    lr: *lr")
    text = re.sub(r"  weights:.*", "  weights:\n    <<: {tv: 9, valid: 9}", text).replace("    tv:", "    # tv:")
    config = load("\ufeff" + text, resume=True)
    assert [phase.lr for phase in config.phases] == [3e-4] * 2
    assert (config.loss.weights.tv, config.loss.weights.valid) == (9, 1)


# --- refused values: each message has source, dotted path, value and the nearest name ----------------------------


BAD_OVERRIDES = [
    ("train.batch_sise=4", ["train.batch_sise: unknown key", "train.batch_size"]),
    ("batch_size=4", ["batch_size: unknown key", "train.batch_size"]),
    ("optim.lr=1", ["optim.lr: unknown key", "phases.0.lr"]),
    ("mask.hole=white", ["mask: unknown key", "masks"]),
    ("masks.image_size=64", ["masks.image_size: unknown key", "did you mean data.image_size or phases.0.image_size?"]),
    ("loss.weight.tv=1", ["loss.weight: unknown key", "loss.weights"]),
    ("phases.0.learning_rate=1", ["phases.0.learning_rate: unknown key", "the keys here are steps, lr, "]),
    ("run.zzzz=1", ["run.zzzz: unknown key", "dir, seed, device"]),
    ("zzzz=1", ["zzzz: unknown key", "run, data, masks"]),
    ("run.dir.x=1", ["run.dir: {"]),
    ("trian={batch_size: 3}", ["trian: unknown key", "train"]),
    ("a..b=1", ["'a..b=1'", "section.key=value"]),
    ("run=5", ["run: 5 must be a section with keys"]),
    ("loss.weights=[1, 6]", ["loss.weights: [1, 6] "]),
    ("train.batch_size=many", ["train.batch_size: 'many' "]),
    ("train.batch_size='4'", ["train.batch_size: '4' "]),
    ("train.batch_size=4.5", ["train.batch_size: 4.5 "]),
    ("train.batch_size=0", ["train.batch_size: 0 ", " 1"]),
    ("train.batch_size=true", ["train.batch_size: true "]),
    ("train.batch_size=", ["train.batch_size: null "]),
    ("train.batch_size=[4]", ["train.batch_size: [4] "]),
    ("phases.0.steps=-1", ["phases.0.steps: -1 "]),
    ("phases.0.steps=1e400", ["phases.0.steps: inf "]),
    ("phases.0.steps=1e308", ["phases.0.steps: 1e+308 "]),
    ("phases=5", ["phases: 5 "]),
    ("phases=[]", ["phases: ", "no steps"]),
    ("phases=[5]", ["phases.0: 5 "]),
    ("phases.0=5", ["phases.0: 5 "]),
    ("phases.2.lr=1", ["phases.2: ", "among the 2"]),
    ("phases.x.lr=1", ["phases.x: ", "no such phase"]),
    ("phases.-1.lr=1", ["phases.-1: ", "no such phase"]),
    ("phases.²=1", ["phases.²"]),
    ("phases.0.schedule=cosin", ["phases.0.schedule: 'cosin' ", "cosine"]),
    ("phases.0.loss_weights={stile: 1}", ["phases.0.loss_weights.stile", "style"]),
    ("phases.0.loss_weights={style: -1}", ["phases.0.loss_weights.style: -1 "]),
    ("run.seed=1:30", ["run.seed: '1:30' "]),  # 90 in YAML 1.1
    ("run.seed=010", ["run.seed: '010' "]),  # 8 in YAML 1.1
    ("run.seed=2024-01-01", ["run.seed: '2024-01-01' "]),
    ("run.seed=9223372036854775808", ["run.seed: 9223372036854775808 "]),
    ("run.seed=" + "9" * 5000, ["run.seed", "thousands of digits"]),
    ("phases.0.lr=.nan", ["phases.0.lr: nan "]),
    ("phases.0.lr=.inf", ["phases.0.lr: inf "]),
    ("phases.0.lr=" + "9" * 400, ["phases.0.lr: 999"]),
    ("phases.0.lr=0", ["phases.0.lr: 0 ", "greater than 0"]),
    ("optim.momentum=1", ["optim.momentum: 1 ", "less than 1"]),
    ("optim.name=adam", ["optim.name: 'adam' ", "Adam", "AdamW", "Muon", "SGD"]),
    ("masks.hole=grey", ["masks.hole: 'grey' ", "black, white or a colour such as '#ff0000'"]),
    ("masks.hole=#ff00", ["masks.hole: '#ff00' ", "'#ff0000'"]),
    ("masks.augment=yes", ["masks.augment: 'yes' "]),
    ("masks.augment=1", ["masks.augment: 1 "]),
    ("masks.style=shape", ["masks.style: 'shape' ", "shapes"]),
    ("masks.style={contours: 0.7, dots: 0.3}", ["masks.style: {", "contours: 0.7"]),
    ("masks.style={contours: -1}", ["masks.style: {'contours': -1} "]),
    ("masks.style={contours: .nan}", ["masks.style: {'contours': nan} "]),
    ("masks.style={}", ["masks.style: {} "]),
    ("run.device=gpu", ["run.device: 'gpu' ", "auto", "cpu", "cuda:N"]),
    ("run.device=cuda:" + "9" * 30, ["run.device: 'cuda:999"]),
    ("data.crop_scale=0.5", ["data.crop_scale: 0.5 "]),
    ("data.crop_scale=[0.1, 0.2, 0.3]", ["data.crop_scale: [0.1, 0.2, 0.3] ", "2"]),
    ("data.crop_scale=[0.1]", ["data.crop_scale.1", "missing"]),
    ("data.crop_scale=[0.9, 0.3]", ["data.crop_scale: [0.9, 0.3] "]),
    ("data.crop_scale=[0.1, x]", ["data.crop_scale.1: 'x' "]),
    ("masks.dilate=[0, 1.5]", ["masks.dilate.1: 1.5 "]),
    ("run.dir=", ["run.dir: '' "]),
    ("run.dir=a\x00b", ["run.dir: 'a\\x00b' "]),
    ("run.dir=a\nb", ["run.dir: 'a\\nb' "]),
    ("run.dir=a\udcff", ["run.dir: 'a\\udcff' must be a file's name, of UTF-8"]),
    ("run.dir=~nobody-at-all/x", ["run.dir: ", "~nobody-at-all", "home"]),
    ("run.dir=$NOT_SET_AT_ALL/x", ["run.dir: ", "$NOT_SET_AT_ALL", "environment"]),
    ("run.dir=${NOT_SET_AT_ALL}", ["${NOT_SET_AT_ALL}", "environment"]),
    ("train.batch_size", ["'train.batch_size'", "section.key=value"]),
    ("=3", ["'=3'", "section.key=value"]),
    ("train.batch_size=[", ["train.batch_size='['", "not valid YAML"]),
    ("run.seed=!!python/object:os.system", ["the tag", "is not supported"]),
    ("run.\x1b[31m=3", ["'run.\\x1b[31m=3'", "section.key=value"]),
    ("\udcff=3", ["'\\udcff=3'", "section.key=value"]),
    ('run={"\\ud800": 3}', ["line 1, column 2", "'\\ud800' is not a name"]),
    ("run={1: 2}", ["run.1", "unknown"]),
    ("train.initial_steps=4", ["train.initial_steps", "older version", "phases"]),
]


@pytest.mark.parametrize(("override", "parts"), BAD_OVERRIDES, ids=[override[:30] for override, _ in BAD_OVERRIDES])
def test_each_kind_of_bad_override(override, parts):
    message = fault(override)
    assert message.startswith("command line: ")
    assert message.isprintable()
    assert len(message) < 400
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["train.batch_size=1", "data.image_size=128"], ["train.batch_size: 1 ", "batch norm", "model.depth"]),
        (["phases.0.steps=0", "phases.1.steps=0"], ["phases", "steps"]),
        ([f"loss.weights={{{NO_WEIGHTS}}}"], ["loss.weights", "above 0"]),
        (["data.image_size=200"], ["data.image_size: 200 ", "128", "try 256"]),
        (["masks.val_dir=x", "masks.train_dir=y/../x/"], ["masks.val_dir: 'x' ", "masks.train_dir"]),
        (["model.depth=9"], ["data.image_size: 256 ", "512", "config.yml"]),
        (["phases.1.image_size=192"], ["phases.1.image_size: 192 ", "128"]),
        (["phases.1.batch_size=7", "train.accumulate=2"], ["phases.1.batch_size: 7 ", "train.accumulate"]),
        ([f"phases.0.loss_weights={{{NO_WEIGHTS}}}"], ["phases.0.loss_weights"]),
        (["phases.1.end_lr=1"], ["phases.1.end_lr: 1", "5e-05"]),
        (["data.crop_unit=area"], ["data.crop_scale: [1.0, 1.4] ", "area"]),
    ],
)
def test_values_that_do_not_go_together(overrides, parts):
    message = fault(*overrides)
    for part in ["command line", *parts]:
        assert part in message


@pytest.mark.parametrize("key", KEYS)
def test_every_key_must_be_there_and_of_its_type(load, key):
    *_, name = key.split(".")
    occurrences = [m.start() for m in re.finditer(rf"(?m)^ +{name}:", DEFAULT_TEXT)]
    order = [k for k in KEYS if k.rpartition(".")[2] == name].index(key)
    start = occurrences[order]
    end = DEFAULT_TEXT.index("\n", start)
    without = DEFAULT_TEXT[:start] + DEFAULT_TEXT[end + 1 :]
    if key in AS_BEFORE:  # newer than some runs, which then resume with the old behaviour
        assert at(config_to_dict(load(without, "data.crop_scale=[0.1, 1]", resume=True)), key) == AS_BEFORE[key]
    else:
        with pytest.raises(UserError) as error:
            load(without, resume=True)
        assert f"some.yml: {key}: " in str(error.value)
        assert "missing" in str(error.value)
    assert load(without) == load_config()
    for value in ("null", "{a: 1}", "[[]]"):
        with pytest.raises(UserError) as error:
            load(DEFAULT_TEXT[:start] + " " * (len(key.split(".")) - 1) * 2 + f"{name}: {value}" + DEFAULT_TEXT[end:])
        assert re.search(rf"some\.yml: {re.escape(key)}[.:]", str(error.value))


def at(tree, path):
    for key in path.split("."):
        tree = tree[key]
    return tree


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_must_be_there(load, section):
    without = re.sub(rf"(?ms)^{section}:.*?(?=^\w|\Z)", "", DEFAULT_TEXT)
    assert load(without) == load_config()
    with pytest.raises(UserError) as error:
        load(without, resume=True)
    message = str(error.value)
    assert "\n" not in message  # its keys are not listed one by one
    assert f"some.yml: {section}: " in message
    assert "missing" in message


def test_a_section_without_values(load):
    text = re.sub(r"(?ms)^optim:.*?(?=^\w)", "optim:\n", DEFAULT_TEXT)
    with pytest.raises(UserError, match=r"some\.yml: optim: null "):
        load(text)


@pytest.mark.parametrize(("key", "now"), [("train.initial_steps", "phases"), ("optim.finetune_lr", "phases")])
def test_a_config_of_an_older_version_is_named_as_one(load, key, now):
    section, name = key.split(".")
    for resume in (False, True):
        with pytest.raises(UserError) as error:
            load(DEFAULT_TEXT.replace(f"{section}:\n", f"{section}:\n  {name}: 3\n"), resume=resume)
        message = str(error.value)
        assert "\n" not in message
        assert all(part in message for part in ("some.yml", key, "older version", now))


def test_a_run_from_before_the_phases_ends_in_one_line(load):
    text = re.sub(r"(?ms)^phases:.*", "", DEFAULT_TEXT)
    text = text.replace("optim:\n", "optim:\n  initial_lr: 1\n  finetune_lr: 1\n")
    with pytest.raises(UserError, match=r"some\.yml: optim\.initial_lr: is a key of an older version") as error:
        load(text.replace("train:\n", "train:\n  initial_steps: 1\n  finetune_steps: 1\n", 1), resume=True)
    assert "\n" not in str(error.value)


def test_what_a_key_that_is_newer_than_a_run_means_is_told(load, capsys):
    load(re.sub(r"(?m)^  base:.*\n", "", DEFAULT_TEXT), resume=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in ("some.yml", "model.base", "none"))


def test_all_faults_at_once_each_with_its_source(load):
    text = with_line("seed", "x").replace("  depth: 7", "  dept: 7").replace("masks:", "mask:")
    with pytest.raises(UserError) as error:
        load(text, "train.batch_size=0", "data.workers=-1", "nonsense", "loss.weights.tv=[", "phases.0.lr=0",
             resume=True)  # fmt: skip
    head, *lines = str(error.value).split("\n")
    assert head.startswith(f"{len(lines)} ")
    sources = [re.sub(r"^.*/", "", line.strip()).split(": ")[:2] for line in lines]
    assert sorted(map(tuple, sources)) == sorted(
        [
            ("some.yml", "run.seed"),
            ("some.yml", "mask"),  # unknown, did you mean masks?
            ("some.yml", "masks"),  # missing
            ("some.yml", "model.dept"),
            ("some.yml", "model.depth"),
            ("command line", "train.batch_size"),
            ("command line", "data.workers"),
            ("command line", "'nonsense' must have the form section.key=value, such as train.batch_size=4"),
            ("command line", "loss.weights.tv='[' line 1, column 2"),
            ("command line", "phases.0.lr"),
        ]
    )


def test_two_sources_of_values_that_do_not_go_together(load):
    with pytest.raises(UserError, match=r"some\.yml and command line: data\.image_size: 256 "):
        load(DEFAULT_TEXT, "model.depth=9")
    with pytest.raises(UserError, match=r"command line and .*some\.yml: train\.batch_size: 19 .*accumulate = 2"):
        load("train: {accumulate: 2}", "train.batch_size=19")
    with pytest.raises(UserError, match=r"some\.yml and command line: phases\.0\.end_lr: 0\.5 "):
        load("phases: [{steps: 4, lr: 1, end_lr: 0.5}]", "phases.0.lr=0.1")


def test_a_key_that_a_phase_lacks_is_missing_where_the_phases_were_given(load):
    with pytest.raises(UserError, match=r"^command line: phases\.0\.steps: is missing$"):
        load("phases: [{steps: 4, lr: 1}]", "phases=[{lr: 1}]")


def test_an_alias_in_itself_ends_in_no_recursion(load):
    with pytest.raises(UserError, match=r"command line: run\.b: .*unknown key"):
        load("run: &a {b: *a}", "run=&a {b: *a}", "run=&a {b: *a}")


# --- unusual files ---------------------------------------------------------------------------------------------

STRANGE = {
    "empty": ("", "sections run, data.*found null"),
    "a comment": ("# nothing\n", "found null"),
    "a list": ("- run\n- data\n", r"found \['run', 'data'\]"),
    "a text": ("run", "found 'run'"),
    "a key twice": (DEFAULT_TEXT + "\nrun: {}\n", r"line \d+, column 1: .*'run' is given twice"),
    "a key twice in a section": (with_line("seed", "0\n  seed: 1"), "'seed' is given twice"),
    "a tab": ("run:\n\tdir: x\n", "line 2, column 1"),
    "bytes": (bytes(range(256)), "not a text file in UTF-8"),
    "UTF-16": (DEFAULT_TEXT.encode("utf-16"), "not a text file in UTF-8"),
    "a zero byte": ("run: \x00", "not valid YAML: unacceptable character"),
    "unfinished": ("run: [1, 2", "line 1, column 11"),
    "two documents": ("run: 1\n---\nrun: 2\n", "another document"),
    "an unknown alias": ("run: *a\n", "undefined alias"),
    "a number as key": (DEFAULT_TEXT + "\n1: 2\n", "1: .*unknown key"),
    "null as key": (DEFAULT_TEXT + "\n~: 2\n", "line \\d+, column 1: .*'~' is not a name"),
    "a list as key": ("? [1, 2]\n: 3\n", "unhashable key"),
    "a dotted key": (DEFAULT_TEXT + "\nrun.seed: 2\n", "line \\d+, column 1: .*'run.seed' is not a name"),
    "a bomb for a name": ("a: &a [1,1,1,1,1,1,1,1]\n" + "".join(
        f"{y}: &{y} [{','.join(['*' + x] * 8)}]\n" for x, y in itertools.pairwise("abcdefghijkl"))
        + "optim: {name: *l}\nmasks: {style: *l}", "optim.name: "),
    "a key with a new line": (DEFAULT_TEXT + '\n"a\\nb": 2\n', r"line \d+, column 1: .*'a\\nb' is not a name"),
    "an object": ("run: !!python/object/apply:os.getcwd []\n", "the tag .* is not supported"),
    "a wrong tag": ("run: !!bool x\n", "the tag .* is not supported"),
    "lists in lists": ("run: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "sections in sections": ("run: " + "{a: " * 5000 + "}" * 5000, "nested too deeply"),
    "a section in itself": ("run: &a\n  b: *a\n", "run.b: .*unknown key"),
    "a bomb": ("a: &a [1,1,1,1,1,1,1,1]\n" + "".join(
        f"{y}: &{y} [{','.join(['*' + x] * 8)}]\n" for x, y in itertools.pairwise("abcdefghijkl")), "l: .*unknown key"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_strange_files(load, name):
    text, pattern = STRANGE[name]
    with pytest.raises(UserError, match=pattern) as error:
        load(text)
    assert "some.yml" in str(error.value)
    assert len(str(error.value)) < 5000
    assert all(line.isprintable() for line in str(error.value).split("\n"))


@pytest.mark.parametrize("name", [".", "none.yml", "a\x00b", "x" * 300])
def test_files_that_can_not_be_read(tmp_path, name):
    with pytest.raises(UserError, match="config"):
        load_config(tmp_path / name)


# --- round trip ------------------------------------------------------------------------------------------------


def same_after_saving(config, path):
    save_config(config, path)
    return load_config(path, resume=True) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_saved_config_reads_back_the_same(path, tmp_path):
    assert same_after_saving(load_config(path), tmp_path / "saved.yml")


STRANGE_NAMES = [
    "1e3", "1.5e3", "12", "0x1f", "010", "1_0", "yes", "No", "true", "null", "1:30", "2024-01-01", ".5", ".inf", "./~x",
    "a: b", "a #b", "#", "- a", "'", '"', "\\", "[a]", "{a}", "&a", "*a", "!a", "%a", "@a", "`a", "|", ">", "?", "=",
    "<<", "été", "写真", "🙂", "x\u2028x", "a\xa0b", "\ufeffx", "$", "a" * 200 + " b" * 100,
]  # fmt: skip


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_texts_that_look_like_something_else_survive(tmp_path, name):
    config = load_config(overrides=[f"run.dir={name}"])
    assert config.run.dir == name
    assert same_after_saving(config, tmp_path / "saved.yml")


@settings(max_examples=100, deadline=None)
@given(
    name=st.text(min_size=1, max_size=30),
    numbers=st.tuples(*[st.floats(0, 1e308)] * 2),
    seed=st.integers(0, 2**63 - 1),
    augment=st.booleans(),
)
def test_any_config_that_loads_reads_back_the_same(tmp_path_factory, name, numbers, seed, augment):
    overrides = [f"run.dir={name}", f"loss.weights.hole={numbers[0]!r}", f"optim.weight_decay={numbers[1]!r}"]
    try:
        config = load_config(overrides=[*overrides, f"run.seed={seed}", f"masks.augment={str(augment).lower()}"])
    except UserError:
        return  # not a name
    assert config.run.seed == seed
    assert config.loss.weights.hole == numbers[0]
    assert same_after_saving(config, tmp_path_factory.getbasetemp() / "saved.yml")


# --- no input ends in a traceback ------------------------------------------------------------------------------

SCRAPS = st.sampled_from([
    "run:", "data", "seed: 1", "loss:\n  weights:", "\n", "\n  ", "- ", ": ", "[", "]", "{", "}", ", ", "&a ", "*a",
    "<<: ", "!!int ", "!!bool x", "!!set ", "!!timestamp ", "|\n", ">\n", "'", '"', "\\", "#", "%", "@", "? ", "~",
    "null", "1:30", "0x", "0b_", "1e5", ".nan", "2024-99-99", "\t", "\r", "---\n", "...\n", "=", "_", "9" * 50,
    "\x00", "\ud800", "é", "$HOME",
])  # fmt: skip
YAML_ISH = st.lists(SCRAPS | st.text(max_size=3), max_size=12).map("".join)
NAMES = st.sampled_from([*KEYS, *SECTIONS, "loss.weights", "run.", ".run", "", "."]) | st.text(max_size=8)


def refusal(*arguments):
    """Return the message with which a config is refused, or None if it is accepted. Any other error fails the test."""
    try:
        assert isinstance(load_config(*arguments), Config)
    except UserError as error:
        return str(error)
    return None


@settings(max_examples=60, deadline=None)
@given(text=YAML_ISH, at=st.floats(0, 1))
def test_any_file_gives_a_config_or_a_user_error(tmp_path_factory, text, at):
    path = tmp_path_factory.getbasetemp() / "any.yml"
    place = int(at * len(DEFAULT_TEXT))
    for whole in (text, DEFAULT_TEXT[:place] + text + DEFAULT_TEXT[place:]):
        path.write_bytes(whole.encode("utf-8", "surrogatepass"))
        for resume in (False, True):
            message = refusal(path, (), resume)
            assert message is None or str(path) in message


@settings(max_examples=150, deadline=None)
@given(overrides=st.lists(st.tuples(NAMES, YAML_ISH).map("=".join) | YAML_ISH, min_size=1, max_size=3))
def test_any_override_gives_a_config_or_a_user_error(overrides):
    message = refusal(DEFAULT_CONFIG, overrides)
    assert message is None or "command line" in message
    assert message is None or all(line.isprintable() for line in message.split("\n"))
