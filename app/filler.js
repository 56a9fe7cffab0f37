// Filling by the server of this page. static/filler.js has the same functions for a page without a server.

import { MEDIA_TYPE, pack, unpack } from "./message.js";
import { maskFile } from "./png.js";

const LONGEST_NAME = 255; // characters; the limit of serving/desk.py

/** An error message of one line: a mistake that the user can correct, or a server that cannot be reached. */
export class FillError extends Error {}

/** Return { methods: [name], formats: [suffix], hint }, the choices of the page. */
export async function connect() {
  const response = await reach("methods", {});
  return { ...(await response.json()), hint: "Photographs go to your own machine’s app.py and are not stored." };
}

/** Return { file, name, width, height, bitmap } of a photograph, oriented as viewers show it. */
export async function openPhoto(file, signal) {
  const name = (file.name || "pasted.png").slice(-LONGEST_NAME);
  const { header, parts } = await ask({ task: "open", name }, [file], signal);
  const bitmap = await createImageBitmap(parts[0] ?? file, { imageOrientation: "from-image" });
  if (bitmap.width !== header.width || bitmap.height !== header.height) {
    throw new FillError(`this browser shows ${name} in another size than ${header.width}×${header.height} px`);
  }
  return { file, name, width: header.width, height: header.height, bitmap, notes: header.notes };
}

/** Return { holes, notes } of a mask file. holes: Uint8Array, 1 = hole. colour: of the file's holes, "black" or "white". */
export async function readMask(photo, file, colour, signal) {
  const request = { task: "mask", name: photo.name, mask: file.name.slice(-LONGEST_NAME), hole: colour };
  const { header, parts } = await ask(request, [photo.file, file], signal);
  const bits = new Uint8Array(await parts[0].arrayBuffer());
  const stride = Math.ceil(photo.width / 8);
  const holes = new Uint8Array(photo.width * photo.height);
  for (let y = 0, i = 0; y < photo.height; y++) {
    for (let x = 0; x < photo.width; x++, i++) holes[i] = (bits[y * stride + (x >> 3)] >> (7 - (x & 7))) & 1;
  }
  return { holes, notes: header.notes };
}

/** Return { edit, seconds, notes }. edit: { left, top, file, bitmap }, the filled hole, to draw over the photograph. */
export async function fill(photo, edits, mask, method, signal) {
  const places = edits.map(({ left, top }) => [left, top]);
  const request = { task: "fill", name: photo.name, mask: "the painted hole", method, places };
  const files = [photo.file, await maskFile(mask), ...edits.map((edit) => edit.file)];
  const { header, parts } = await ask(request, files, signal);
  const edit = { left: header.left, top: header.top, file: parts[0], bitmap: await createImageBitmap(parts[0]) };
  return { edit, seconds: header.seconds, notes: header.notes };
}

/** Return { name, blob, notes }, a file of the photograph after these edits. format: one of connect's formats. */
export async function save(photo, edits, format, signal) {
  const request = { task: "save", name: photo.name, format, places: edits.map(({ left, top }) => [left, top]) };
  const { header, parts } = await ask(request, [photo.file, ...edits.map((edit) => edit.file)], signal);
  return { name: header.name, blob: parts[0], notes: header.notes };
}

async function ask(header, files, signal) {
  const body = pack(header, files);
  const response = await reach("task", { method: "POST", body, signal, headers: { "Content-Type": MEDIA_TYPE } });
  const answer = unpack(await response.arrayBuffer());
  if (answer.header.error) throw new FillError(answer.header.error);
  return answer;
}

async function reach(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new FillError("app.py does not answer; is it still running?");
  }
  if (!response.ok) throw new FillError(await response.text());
  return response;
}
