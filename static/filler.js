// Filling in the browser. Photographs never leave the machine. app/filler.js has the same functions with a server.

import { surroundings } from "./base.js";
import { RGB, RGBA, pngFile, upFiltered } from "./png.js";

const MOST = 2 ** 22; // px that the network processes at once, in about 2 GB

/** An error message of one line, about a mistake that the user can correct. */
export class FillError extends Error {}

let network; // content of network.json: { name, file, multiple, reach, base, plate }

/** Return { methods: [name], formats: [suffix], hint }, the choices of the page. */
export async function connect() {
  const response = await fetch("network.json");
  if (!response.ok) throw new FillError("network.json is missing beside this page; copy the whole of site/");
  network = await response.json();
  return {
    methods: [network.name],
    formats: [".png"],
    hint: "Your photographs stay in this browser: the network runs here. It is loaded at the first fill.",
  };
}

/** Return { file, name, width, height, bitmap, pixels, notes } of a photograph. pixels: RGBA, oriented as in viewers. */
export async function openPhoto(file) {
  const name = file.name || "pasted.png";
  const bitmap = await decode(file, name);
  const { width, height } = bitmap;
  const pixels = pixelsOf(bitmap);
  const notes = [];
  if (hasAlpha(pixels)) notes.push("A browser rounds half-transparent colours; app.py keeps them as they are.");
  return { file, name, width, height, bitmap, pixels, notes };
}

/** Return { holes, notes } of a mask file. holes: Uint8Array, 1 = hole. colour: of the file's holes, "black" or "white". */
export async function readMask(photo, file, colour) {
  const bitmap = await decode(file, file.name);
  const { width, height } = bitmap;
  if (width !== photo.width || height !== photo.height) {
    throw new FillError(
      `mask ${file.name} is ${width}×${height} px and image ${photo.name} is ${photo.width}×${photo.height} px;` +
        " they must have the same size",
    );
  }
  const pixels = pixelsOf(bitmap);
  const black = colour === "black" ? 1 : 0;
  const holes = new Uint8Array(width * height);
  for (let i = 0, p = 0; i < holes.length; i++, p += 4) {
    const grey = (19595 * pixels[p] + 38470 * pixels[p + 1] + 7471 * pixels[p + 2] + 32768) >> 16; // ITU-R 601
    holes[i] = grey > 127 ? 1 - black : black;
  }
  if (!holes.includes(1) || !holes.includes(0)) {
    throw new FillError(`mask ${file.name} ${holes[0] ? "is all hole" : "has no hole"} (holes are ${colour}); try the other colour`);
  }
  return { holes, notes: [] };
}

/** Return { edit, seconds, notes }. edit: { left, top, pixels, bitmap }, the filled hole, to draw over the photograph. */
export async function fill(photo, edits, mask, method, signal) {
  const whole = { left: 0, top: 0, right: photo.width, bottom: photo.height };
  if (!holdsValid(photo, mask, whole)) {
    throw new FillError("all of the picture is painted or transparent; nothing is left to fill it from");
  }
  const hole = boxOf(mask);
  const region = regionOf(hole, photo);
  const stride = region.right - region.left;
  if (stride * (region.bottom - region.top) > MOST) {
    throw new FillError("this hole is too large for the memory of a browser; fill parts of it, or use app.py");
  }
  const seen = surroundings(photo, region, network, (box) => holdsValid(photo, mask, box));
  const [width, height] = [seen.right - seen.left, seen.bottom - seen.top];
  const pixels = cutRgba(photo.pixels, photo.width, seen);
  for (const edit of edits) apply(edit, pixels, seen);
  const valid = validOf(photo, mask, seen);
  const { filled, seconds, threads } = await compute({ width, height, pixels, valid }, moved(region, seen), signal);
  const box = new ImageData(hole.right - hole.left, hole.bottom - hole.top);
  for (let y = hole.top, p = 0; y < hole.bottom; y++) {
    for (let x = hole.left; x < hole.right; x++, p += 4) {
      if (!mask.holes[y * photo.width + x]) continue;
      const from = 4 * ((y - region.top) * stride + x - region.left);
      box.data.set(filled.subarray(from, from + 3), p);
      box.data[p + 3] = 255;
    }
  }
  const edit = { left: hole.left, top: hole.top, pixels: box, bitmap: await createImageBitmap(box) };
  const notes = threads > 1 ? [] : ["One thread: this host does not isolate the page, so it can use only one core."];
  return { edit, seconds, notes };
}

/** Return { name, blob, notes }, a PNG file of the photograph after these edits. */
export async function save(photo, edits) {
  const { width, height } = photo;
  const pixels = photo.pixels.slice();
  const whole = { left: 0, top: 0, right: width, bottom: height };
  for (const edit of edits) apply(edit, pixels, whole);
  const channels = hasAlpha(pixels) ? 4 : 3;
  const rows = upFiltered(pixels, width, height, channels);
  const blob = await pngFile(width, height, 8, channels === 4 ? RGBA : RGB, rows);
  return { name: `${photo.name.replace(/\.[^.]*$/, "")}_inpainted.png`, blob, notes: [] };
}

// --- the worker --------------------------------------------------------------------------------------------------

let worker = null;

/** Let the worker fill a region of a picture. Aborting terminates the worker, as a running computation cannot be stopped. */
function compute(picture, region, signal) {
  worker ??= new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  const current = worker;
  return new Promise((resolve, reject) => {
    const give = (error) => {
      current.terminate();
      if (worker === current) worker = null;
      reject(error);
    };
    signal.addEventListener("abort", () => give(new DOMException("cancelled", "AbortError")), { once: true });
    current.onerror = ({ message }) => {
      const reason = message ?? "its host does not answer, or this browser lacks module workers";
      give(new FillError(`the network can't be loaded: ${reason}`));
    };
    current.onmessage = ({ data }) => (data.error ? give(new FillError(data.error)) : resolve(data));
    current.postMessage({ picture, region, facts: network }, [picture.pixels.buffer, picture.valid.buffer]);
  });
}

// --- pixels ------------------------------------------------------------------------------------------------------

async function decode(file, name) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image", premultiplyAlpha: "none" });
  } catch {
    throw new FillError(`not an image, or of a kind that this browser can't read: ${name}; app.py reads TIFF, too`);
  }
}

function pixelsOf(bitmap) {
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height).data;
}

function hasAlpha(pixels) {
  for (let i = 3; i < pixels.length; i += 4) if (pixels[i] !== 255) return true;
  return false;
}

/** Return the smallest box around the hole, { left, top, right, bottom }. */
function boxOf({ width, height, holes }) {
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let y = 0; y < height; y++) {
    const row = holes.subarray(y * width, (y + 1) * width);
    const first = row.indexOf(1);
    if (first < 0) continue;
    [left, top, right, bottom] = [Math.min(left, first), Math.min(top, y), Math.max(right, row.lastIndexOf(1) + 1), y + 1];
  }
  return { left, top, right, bottom };
}

/** Return the box that the U-Net must read: the hole and its receptive field, aligned with the strides of the full
 * picture. It ends at a multiple, too, so it may extend beyond the picture. */
function regionOf(hole, { width, height }) {
  const { multiple, reach } = network;
  const from = (value) => Math.floor(Math.max(0, value - reach) / multiple) * multiple;
  const to = (value, most) => Math.ceil(Math.min(most, value + reach) / multiple) * multiple;
  return { left: from(hole.left), top: from(hole.top), right: to(hole.right, width), bottom: to(hole.bottom, height) };
}

/** Return whether a box of the photograph contains a valid pixel. */
function holdsValid(photo, mask, { left, top, right, bottom }) {
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) if (isValid(photo, mask, y * photo.width + x)) return true;
  }
  return false;
}

/** Return which pixels of a box are valid, as 0 or 1. */
function validOf(photo, mask, { left, top, right, bottom }) {
  const valid = new Uint8Array((right - left) * (bottom - top));
  for (let y = top, i = 0; y < bottom; y++) {
    for (let x = left; x < right; x++, i++) if (isValid(photo, mask, y * photo.width + x)) valid[i] = 1;
  }
  return valid;
}

function isValid(photo, mask, i) {
  return !mask.holes[i] && photo.pixels[4 * i + 3] > 0; // the colour of fully transparent pixels is meaningless
}

/** Return a box in the coordinates of another. */
function moved({ left, top, right, bottom }, other) {
  return { left: left - other.left, top: top - other.top, right: right - other.left, bottom: bottom - other.top };
}

function cutRgba(pixels, width, { left, top, right, bottom }) {
  const part = new Uint8ClampedArray(4 * (right - left) * (bottom - top));
  for (let y = top, i = 0; y < bottom; y++, i += 4 * (right - left)) {
    part.set(pixels.subarray(4 * (y * width + left), 4 * (y * width + right)), i);
  }
  return part;
}

/** Write an edit into the pixels of a region. Alpha stays the photograph's. */
function apply({ left, top, pixels: { width, height, data } }, pixels, region) {
  const stride = region.right - region.left;
  for (let y = Math.max(0, region.top - top); y < Math.min(height, region.bottom - top); y++) {
    for (let x = Math.max(0, region.left - left); x < Math.min(width, region.right - left); x++) {
      const from = 4 * (y * width + x);
      if (data[from + 3] === 0) continue;
      const to = 4 * ((y + top - region.top) * stride + x + left - region.left);
      pixels.set(data.subarray(from, from + 3), to);
    }
  }
}

