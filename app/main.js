// The page's buttons and keys. Only ./filler.js fills photographs.

import { FillError, connect, fill, openPhoto, readMask, save } from "./filler.js";
import { History } from "./history.js";
import { Mask, cut } from "./mask.js";
import { Painter } from "./painter.js";
import { maskFile } from "./png.js";
import { View } from "./view.js";

const LONG = 2000; // ms until a progress bar appears
const STEP = 1.25; // factor by which a key changes zoom or brush size

const element = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

const page = {
  photo: null, // result of openPhoto
  edits: [], // results of fill, in order; each applies to the picture after the previous ones
  masks: [], // the mask of each edit
  busy: null, // AbortController of the running task
  unsaved: false,
};

const history = new History(refresh);
const view = new View(element("stage"), (zoom) => {
  element("zoom").textContent = `${Math.round(zoom * 100)} %`;
});
const painter = new Painter(
  view,
  () => ({ tool: chosen("tool"), size: Number(element("size").value), frozen: page.busy !== null }),
  ({ box, before, after }) => {
    addMaskStep(box, before, after);
    page.unsaved = true;
  },
);

// --- the picture -----------------------------------------------------------------------------------------------

async function open(file) {
  if (page.busy || !file) return;
  if (page.unsaved && !confirm("Open another picture? What was painted and filled here is not saved.")) return;
  await during(`Opening ${file.name || "the picture"} …`, async (signal) => {
    const photo = await openPhoto(file, signal);
    const current = document.createElement("canvas");
    [current.width, current.height] = [photo.width, photo.height];
    current.getContext("2d").drawImage(photo.bitmap, 0, 0);
    page.photo?.bitmap.close();
    Object.assign(page, { photo, edits: [], masks: [], unsaved: false });
    history.clear();
    element("welcome").classList.add("hidden");
    element("name").textContent = photo.name;
    choose("compare", "off");
    view.show(photo.bitmap, current, new Mask(photo.width, photo.height));
    return [`${photo.width}×${photo.height} px. Paint over what should go, then press Fill, or Enter.`, ...photo.notes];
  });
}

async function runFill() {
  if (page.busy || !page.photo) return;
  if (view.mask.isEmpty() && !returnToLastHole()) {
    showError("Nothing is painted yet: paint over what should go, then fill.");
    return;
  }
  choose("compare", "off");
  const method = element("method").value;
  const { width, height } = view.mask;
  const mask = { width, height, holes: view.mask.holes.slice() };
  await during(`Filling by ${method} …`, async (signal) => {
    const began = performance.now();
    const { edit, seconds, notes } = await fill(page.photo, page.edits, mask, method, signal);
    const passed = (performance.now() - began) / 1000;
    await addFill(edit, mask);
    return [`Filled by ${method} in ${passed.toFixed(1)} s (${seconds.toFixed(1)} s of it computing).`, ...notes];
  });
}

/** If nothing was painted after the last fill, undo that fill, so that another method can fill the same hole. */
function returnToLastHole() {
  if (!history.done.at(-1)?.isFill) return false;
  history.undo();
  return true;
}

async function addFill(edit, mask) {
  const { left, top, bitmap } = edit;
  const context = view.current.getContext("2d");
  const before = await createImageBitmap(view.current, left, top, bitmap.width, bitmap.height);
  const step = {
    isFill: true,
    cost: 8 * bitmap.width * bitmap.height + mask.holes.length,
    redo() {
      context.drawImage(bitmap, left, top);
      page.edits.push(edit);
      page.masks.push(mask);
      setHoles(new Uint8Array(mask.holes.length));
    },
    undo() {
      context.clearRect(left, top, bitmap.width, bitmap.height);
      context.drawImage(before, left, top);
      page.edits.pop();
      page.masks.pop();
      setHoles(mask.holes.slice());
    },
  };
  step.redo();
  history.add(step);
  page.unsaved = true;
}

async function savePicture() {
  if (page.busy || !page.photo) return;
  await during("Writing the file …", async (signal) => {
    const { name, blob, notes } = await save(page.photo, page.edits, element("format").value, signal);
    download(name, blob);
    page.unsaved = false;
    return [`Saved ${name}, ${(blob.size / 1e6).toFixed(1)} MB.`, ...notes];
  });
}

// --- the hole ----------------------------------------------------------------------------------------------------

function addMaskStep(box, before, after) {
  const exchange = (pixels) => {
    view.mask.exchange(box, pixels);
    view.draw();
  };
  history.add({ undo: () => exchange(before), redo: () => exchange(after), cost: before.length + after.length });
}

/** Change the whole mask, with undo. */
function changeMask(change) {
  if (page.busy || !page.photo) return;
  const before = view.mask.holes.slice();
  change(view.mask);
  const { width, holes } = view.mask;
  const box = view.mask.changed(before);
  view.draw();
  if (!box) return;
  addMaskStep(box, cut(before, width, box), cut(holes, width, box));
  page.unsaved = true;
}

function setHoles(holes) {
  view.mask.holes = holes;
  view.draw();
}

function widen() {
  const input = element("widen-by");
  const n = Math.round(Number(input.value));
  if (!(n >= 1 && n <= 100)) {
    showError(`Widen by 1 to 100 px, not by ${input.value || "nothing"}.`);
    return;
  }
  changeMask((mask) => mask.widen(n));
  showStatus([`The hole is ${n} px wider on every side.`]);
}

async function loadMask(file) {
  if (page.busy || !page.photo || !file) return;
  await during("Reading the mask …", async (signal) => {
    const { holes, notes } = await readMask(page.photo, file, element("hole").value, signal);
    page.busy = null; // from here on the mask may change
    changeMask((mask) => {
      mask.holes = holes;
    });
    return [`The hole is that of ${file.name}.`, ...notes];
  });
}

async function saveMask() {
  const mask = view.mask?.isEmpty() ? page.masks.at(-1) : view.mask;
  if (mask) download(`${stem(page.photo.name)}_mask.png`, await maskFile(mask));
  else showError("Nothing is painted yet: there is no mask to save.");
}

// --- messages ------------------------------------------------------------------------------------------------

/** Run a task that may take long, one at a time. Shows a progress bar, allows cancelling, shows errors on the page. */
async function during(what, task) {
  painter.abandon();
  page.busy = new AbortController();
  const began = performance.now();
  showError("");
  showStatus([what]);
  refresh();
  const clock = setInterval(() => {
    const passed = performance.now() - began;
    if (passed < LONG) return;
    element("progress").classList.remove("hidden");
    element("status").textContent = `${what} ${Math.floor(passed / 1000)} s`;
  }, 250);
  try {
    const lines = await task(page.busy.signal);
    showStatus(lines);
  } catch (error) {
    showStatus([error.name === "AbortError" ? "Cancelled. The hole is as you painted it." : ""]);
    if (error instanceof FillError) showError(error.message);
    else if (error.name !== "AbortError") {
      showError(`This browser could not do it: ${error.message}`);
      console.error(error);
    }
  } finally {
    clearInterval(clock);
    page.busy = null;
    element("progress").classList.add("hidden");
    refresh();
  }
}

function showStatus(lines) {
  element("status").textContent = lines.filter(Boolean).join("\n");
}

function showError(line) {
  element("error").classList.toggle("hidden", !line);
  element("error").querySelector("span").textContent = line;
}

/** Enable the buttons that can be used now. */
function refresh() {
  const idle = page.photo !== null && page.busy === null;
  for (const id of ["fill", "save", "clear", "widen", "load-mask", "save-mask"]) element(id).disabled = !idle;
  element("before").disabled = page.photo === null;
  element("undo").disabled = !idle || !history.done.length;
  element("redo").disabled = !idle || !history.undone.length;
  element("fill").classList.toggle("hidden", page.busy !== null);
  element("cancel").classList.toggle("hidden", page.busy === null);
  element("stage").setAttribute("aria-busy", page.busy !== null);
}

function download(name, blob) {
  const link = document.createElement("a");
  link.download = name;
  link.href = URL.createObjectURL(blob);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function stem(name) {
  return name.replace(/\.[^.]*$/, "") || name;
}

// --- buttons, keys, files ----------------------------------------------------------------------------------------

function choose(name, value) {
  const input = document.querySelector(`input[name="${name}"][value="${value}"]`);
  if (input.checked) return;
  input.checked = true;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

function step(direction) {
  if (page.busy) return;
  const made = direction === "undo" ? history.undo() : history.redo();
  if (made) page.unsaved = true;
  view.draw();
}

function resizeBrush(factor) {
  const size = element("size"); // a range input, which clamps its value
  const round = factor > 1 ? Math.ceil : Math.floor;
  size.value = round(Number(size.value) * factor);
}

function holdBefore(held) {
  if (page.photo) view.setCompare(held ? "before" : chosen("compare"));
}

function onClick(id, action) {
  element(id).addEventListener("click", action);
}

function listen() {
  onClick("open", () => element("file").click());
  onClick("open-first", () => element("file").click());
  onClick("fill", runFill);
  onClick("cancel", () => page.busy?.abort());
  onClick("save", savePicture);
  onClick("undo", () => step("undo"));
  onClick("redo", () => step("redo"));
  onClick("clear", () => changeMask((mask) => { mask.holes = new Uint8Array(mask.holes.length); }));
  onClick("widen", widen);
  onClick("load-mask", () => element("mask-file").click());
  onClick("save-mask", saveMask);
  onClick("zoom-in", () => view.zoomTo(view.zoom * STEP));
  onClick("zoom-out", () => view.zoomTo(view.zoom / STEP));
  onClick("fit", () => view.fit());
  onClick("actual", () => view.zoomTo(1 / view.ratio));
  element("error").querySelector("button").addEventListener("click", () => showError(""));

  const pick = (id, action) => element(id).addEventListener("change", ({ target }) => {
    const [file] = target.files;
    target.value = ""; // so that the same file can be chosen again
    action(file);
  });
  pick("file", open);
  pick("mask-file", loadMask);

  for (const name of ["pointerdown", "pointerup", "pointerleave", "pointercancel"]) {
    element("before").addEventListener(name, () => holdBefore(name === "pointerdown"));
  }
  element("compare").addEventListener("change", () => {
    const compare = chosen("compare");
    element("split").classList.toggle("hidden", compare !== "slider");
    element("stage").classList.toggle("slider", compare === "slider");
    view.setCompare(compare);
  });
  element("split").querySelector("input").addEventListener("input", ({ target }) => {
    view.split = Number(target.value);
    view.draw();
  });
  const showTool = () => { element("stage").dataset.tool = chosen("tool"); };
  element("tools").addEventListener("change", showTool);
  showTool();

  document.addEventListener("paste", (event) => open([...event.clipboardData.files].find(({ type }) => type.startsWith("image/"))));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    open(event.dataTransfer.files[0]);
  });
  window.addEventListener("beforeunload", (event) => {
    if (page.unsaved) event.preventDefault();
  });
  window.addEventListener("keydown", onKey);
  window.addEventListener("keyup", ({ key }) => {
    if (key === " ") painter.space = false;
    if (key.toLowerCase() === "c") holdBefore(false);
  });
  window.addEventListener("blur", () => {
    painter.space = false;
    holdBefore(false);
  });
}

const KEYS = {
  o: () => element("file").click(),
  b: () => choose("tool", "brush"),
  e: () => choose("tool", "eraser"),
  r: () => choose("tool", "rectangle"),
  l: () => choose("tool", "lasso"),
  h: () => choose("tool", "hand"),
  c: () => holdBefore(true),
  "[": () => resizeBrush(1 / STEP),
  "]": () => resizeBrush(STEP),
  "+": () => view.zoomTo(view.zoom * STEP),
  "=": () => view.zoomTo(view.zoom * STEP),
  "-": () => view.zoomTo(view.zoom / STEP),
  0: () => view.fit(),
  1: () => view.zoomTo(1 / view.ratio),
  escape: () => page.busy?.abort(),
};
const ARROWS = { arrowleft: [40, 0], arrowright: [-40, 0], arrowup: [0, 40], arrowdown: [0, -40] };

function onKey(event) {
  const key = event.key.toLowerCase();
  const types = event.target.matches("select, input[type=number]");
  const presses = event.target.matches("button, summary, select, input[type=number]");
  if (event.ctrlKey || event.metaKey) {
    if (key === "z" && !types) step(event.shiftKey ? "redo" : "undo");
    else if (key === "y" && !types) step("redo");
    else if (key === "s") savePicture();
    else return;
    event.preventDefault();
    return;
  }
  if (event.altKey || types) return;
  if (key === "enter" && !presses) runFill();
  else if (key === " " && event.target.matches("body, #stage")) painter.space = true;
  else if (ARROWS[key] && event.target.matches("#stage")) view.move(...ARROWS[key]);
  else if (KEYS[key]) KEYS[key]();
  else return;
  event.preventDefault();
}

async function start() {
  listen();
  refresh();
  try {
    const { methods, formats, hint } = await connect();
    element("method").replaceChildren(...methods.map((name) => new Option(name)));
    element("format").replaceChildren(...formats.map((suffix) => new Option(suffix.slice(1).toUpperCase(), suffix)));
    element("hint").textContent = hint;
  } catch (error) {
    showError(error.message);
  }
}

start();
