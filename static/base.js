// The network's base: holes filled by a pyramid of masked means, of which the finest levels may be relaxed towards a
// thin plate, as in model/base.py and model/filler.py, but always from a wider window.
// A picture is { width, height, pixels, valid }. pixels: RGBA; valid: 0 or 1. A level of the pyramid is { width, height,
// values, valid }. values: RGB in [0,1], 0 where not valid. A box is { left, top, right, bottom } in px; right and
// bottom are exclusive.

/**
 * Return the base in a region of a picture, RGB. The region's sides are multiples of facts.multiple, a power of two.
 * facts.plate: { levels, steps, reach } of the relaxed levels, or null.
 */
export function baseOf(picture, region, { multiple, plate }) {
  const depth = Math.log2(multiple);
  const size = { width: aligned(picture.width, multiple), height: aligned(picture.height, multiple) };
  const wider = plate ? extended(region, aligned(plate.reach, multiple), size) : region;
  const below = cut(filledLevel(picture, depth), {
    left: wider.left / multiple,
    top: wider.top / multiple,
    right: wider.right / multiple,
    bottom: wider.bottom / multiple,
  });
  const filled = push(pull(levelOf(picture, wider), depth - 1), below, plate);
  const inside = { left: region.left - wider.left, top: region.top - wider.top };
  return cut(filled, {
    ...inside,
    right: inside.left + region.right - region.left,
    bottom: inside.top + region.bottom - region.top,
  }).values;
}

/**
 * Return the box of a picture that the network must read to fill `region` as in the full picture. The base reads
 * further than the U-Net: what its relaxed levels need, then squares that double in size, until each contains a valid
 * pixel. holdsValid(box): whether a box contains one.
 */
export function surroundings({ width, height }, region, { multiple, base, plate }, holdsValid) {
  const wider = plate ? extended(region, aligned(plate.reach, multiple), { width, height }) : region;
  let [left, top] = [wider.left / multiple, wider.top / multiple];
  let [right, bottom] = [Math.ceil(wider.right / multiple), Math.ceil(wider.bottom / multiple)];
  for (let step = multiple; ; step *= 2) {
    const seen = {
      left: Math.max(0, left * step),
      top: Math.max(0, top * step),
      right: Math.min(width, right * step),
      bottom: Math.min(height, bottom * step),
    };
    const whole = seen.right - seen.left === width && seen.bottom - seen.top === height;
    if (base === "none" || whole || squares(seen, step).every(holdsValid)) return seen;
    // Each level is interpolated from the next coarser one, with a margin of 1 px on each side.
    [left, top] = [Math.floor((left - 1) / 2), Math.floor((top - 1) / 2)];
    [right, bottom] = [Math.floor(right / 2) + 1, Math.floor(bottom / 2) + 1];
  }
}

/** Return a box of a picture as a level. Outside of the picture everything is hole. */
export function levelOf({ width, height, pixels, valid }, { left, top, right, bottom }) {
  const level = emptyLevel(right - left, bottom - top);
  for (let y = top; y < Math.min(bottom, height); y++) {
    for (let x = left; x < Math.min(right, width); x++) {
      const from = y * width + x;
      if (!valid[from]) continue;
      const to = (y - top) * level.width + x - left;
      level.valid[to] = 1;
      for (let c = 0; c < 3; c++) level.values[3 * to + c] = pixels[4 * from + c] / 255;
    }
  }
  return level;
}

/** Return the smallest multiple that is at least a length. */
function aligned(length, multiple) {
  return Math.ceil(length / multiple) * multiple;
}

/** Return a box, extended by `margin` px on each side where the picture goes on. */
function extended({ left, top, right, bottom }, margin, { width, height }) {
  return {
    left: Math.max(0, left - margin),
    top: Math.max(0, top - margin),
    right: Math.max(right, Math.min(width, right + margin)),
    bottom: Math.max(bottom, Math.min(height, bottom + margin)),
  };
}

function squares({ left, top, right, bottom }, step) {
  const found = [];
  for (let y = top; y < bottom; y += step) {
    for (let x = left; x < right; x += step) {
      found.push({ left: x, top: y, right: Math.min(x + step, right), bottom: Math.min(y + step, bottom) });
    }
  }
  return found;
}

/** Return the filled level at 1/2**depth of the picture's size. */
function filledLevel(picture, depth) {
  const rows = 2 ** depth;
  const coarse = emptyLevel(Math.ceil(picture.width / rows), Math.ceil(picture.height / rows));
  for (let y = 0; y < coarse.height; y++) { // row by row: a level of the full picture would be large
    const strip = levelOf(picture, { left: 0, top: y * rows, right: picture.width, bottom: (y + 1) * rows });
    const row = pull(strip, depth).at(-1);
    coarse.values.set(row.values, 3 * y * coarse.width);
    coarse.valid.set(row.valid, y * coarse.width);
  }
  const count = Math.ceil(Math.log2(Math.max(coarse.width, coarse.height)));
  const pyramid = pull(coarse, count); // down to one pixel
  return push(pyramid.slice(0, -1), pyramid.at(-1));
}

/** Return the level and `count` coarser ones: each pixel is the mean of the valid ones of 2×2, valid if there are any. */
function pull(level, count) {
  const pyramid = [level];
  while (pyramid.length <= count) pyramid.push(meansOf2x2(pyramid.at(-1)));
  return pyramid;
}

/** Return the first level of a pyramid with its holes filled. below: the filled level after the pyramid's last one. */
function push(pyramid, below, plate = null) {
  for (const [number, level] of [...pyramid.entries()].reverse()) {
    below = filledFrom(level, below);
    if (number < (plate?.levels ?? 0)) relax(below, level.valid, plate.steps);
  }
  return below;
}

/** Change the holes of a filled level by Chebyshev steps [length, memory] towards a thin plate, as in model/base.py. */
function relax({ width, height, values }, valid, steps) {
  const holes = valid.map((known) => 1 - known);
  const [curvature, direction] = [new Float32Array(values.length), new Float32Array(values.length)];
  const needed = nearHoles(width, height, holes);
  for (const [length, memory] of steps) {
    forEachPixel(width, height, needed, (i, around) => {
      for (let c = 0; c < 3; c++) curvature[i + c] = laplacian(values, i + c, around, c);
    });
    forEachPixel(width, height, holes, (i, around) => {
      for (let c = 0; c < 3; c++) direction[i + c] = memory * direction[i + c] - laplacian(curvature, i + c, around, c);
    });
    for (let i = 0; i < values.length; i++) values[i] += length * direction[i];
  }
}

/** Call use(place, around) for each chosen pixel: where its red is, and that of its four neighbours within the level. */
function forEachPixel(width, height, chosen, use) {
  const around = new Int32Array(4);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!chosen[i]) continue;
      around[0] = 3 * (x > 0 ? i - 1 : i);
      around[1] = 3 * (x < width - 1 ? i + 1 : i);
      around[2] = 3 * (y > 0 ? i - width : i);
      around[3] = 3 * (y < height - 1 ? i + width : i);
      use(3 * i, around);
    }
  }
}

function laplacian(values, place, around, c) {
  return values[around[0] + c] + values[around[1] + c] + values[around[2] + c] + values[around[3] + c] - 4 * values[place];
}

/** Return which pixels are holes or beside one, as 0 or 1. */
function nearHoles(width, height, holes) {
  const near = new Uint8Array(holes.length);
  forEachPixel(width, height, holes, (i, around) => {
    near[i / 3] = 1;
    for (const other of around) near[other / 3] = 1;
  });
  return near;
}

/** Return a box of a level. */
function cut(level, { left, top, right, bottom }) {
  const part = emptyLevel(right - left, bottom - top);
  for (let y = 0; y < part.height; y++) {
    const from = (y + top) * level.width + left;
    part.values.set(level.values.subarray(3 * from, 3 * (from + part.width)), 3 * y * part.width);
    part.valid.set(level.valid.subarray(from, from + part.width), y * part.width);
  }
  return part;
}

function emptyLevel(width, height) {
  return { width, height, values: new Float32Array(3 * width * height), valid: new Uint8Array(width * height) };
}

function meansOf2x2(level) {
  const { width, height, values, valid } = level;
  const below = emptyLevel(Math.ceil(width / 2), Math.ceil(height / 2));
  for (let y = 0, i = 0; y < below.height; y++) {
    for (let x = 0; x < below.width; x++, i++) {
      let [count, red, green, blue] = [0, 0, 0, 0];
      for (let v = 2 * y; v < Math.min(2 * y + 2, height); v++) {
        for (let u = 2 * x; u < Math.min(2 * x + 2, width); u++) {
          const from = v * width + u;
          if (!valid[from]) continue;
          count++;
          red += values[3 * from];
          green += values[3 * from + 1];
          blue += values[3 * from + 2];
        }
      }
      if (!count) continue;
      below.valid[i] = 1;
      below.values[3 * i] = red / count;
      below.values[3 * i + 1] = green / count;
      below.values[3 * i + 2] = blue / count;
    }
  }
  return below;
}

/** Return the level with its holes filled by bilinear interpolation from `below`, the next coarser level. */
function filledFrom(level, below) {
  const { width, height, valid } = level;
  const values = level.values.slice();
  const columns = Array.from({ length: width }, (_, x) => neighbours(x, below.width));
  for (let y = 0, i = 0; y < height; y++) {
    const [near, far] = neighbours(y, below.height).map((row) => row * below.width);
    for (let x = 0; x < width; x++, i++) {
      if (valid[i]) continue;
      const [left, right] = columns[x];
      for (let c = 0; c < 3; c++) {
        const at = (row, column) => below.values[3 * (row + column) + c];
        values[3 * i + c] =
          0.75 * (0.75 * at(near, left) + 0.25 * at(near, right)) + 0.25 * (0.75 * at(far, left) + 0.25 * at(far, right));
      }
    }
  }
  return { ...level, values, valid: new Uint8Array(valid.length).fill(1) };
}

/** Return the two pixels of the next coarser level around a pixel: the nearer one, of weight 0.75, and the other. */
function neighbours(place, size) {
  const near = place >> 1;
  return [near, Math.min(Math.max(near + (place % 2 ? 1 : -1), 0), size - 1)];
}
