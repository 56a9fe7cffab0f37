// The network's base: holes filled by a pyramid of masked means, as in model/base.py and model/filler.py.
// A picture is { width, height, pixels, valid }. pixels: RGBA; valid: 0 or 1. A level of the pyramid is { width, height,
// values, valid }. values: RGB in [0,1], 0 where not valid. A box is { left, top, right, bottom } in px; right and
// bottom are exclusive.

/** Return the base in a region of a picture, RGB. The region's sides are multiples of `multiple`, a power of two. */
export function baseOf(picture, region, multiple) {
  const depth = Math.log2(multiple);
  const below = cut(filledLevel(picture, depth), {
    left: region.left / multiple,
    top: region.top / multiple,
    right: region.right / multiple,
    bottom: region.bottom / multiple,
  });
  return push(pull(levelOf(picture, region), depth - 1), below).values;
}

/**
 * Return the box of a picture that the network must read to fill `region` as in the full picture. The base reads
 * further than the U-Net: squares that double in size, until each contains a valid pixel. holdsValid(box): whether a
 * box contains one.
 */
export function surroundings({ width, height }, region, { multiple, base }, holdsValid) {
  let [left, top] = [region.left / multiple, region.top / multiple];
  let [right, bottom] = [Math.ceil(region.right / multiple), Math.ceil(region.bottom / multiple)];
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
function push(pyramid, below) {
  for (const level of [...pyramid].reverse()) below = filledFrom(level, below);
  return below;
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
