// PNG files are written here, because a canvas does not preserve every pixel value.

const SIGNATURE = new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
// Colour types of the PNG specification.
export const GREY = 0;
export const RGB = 2;
export const RGBA = 6;
const UP = 2; // PNG filter type: differences to the row above

const CRC_TABLE = new Uint32Array(256).map((_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** Return a mask as a file of 1 bit per pixel, holes black. mask: { width, height, holes }. */
export function maskFile({ width, height, holes }) {
  const stride = 1 + Math.ceil(width / 8); // each row begins with its filter type; 0 = none
  const rows = new Uint8Array(stride * height);
  for (let y = 0, i = 0; y < height; y++) {
    const row = y * stride + 1;
    for (let x = 0; x < width; x++, i++) if (!holes[i]) rows[row + (x >> 3)] |= 128 >> (x & 7);
  }
  return pngFile(width, height, 1, GREY, rows);
}

/** Return 8-bit RGBA pixels as rows for pngFile, with 3 or 4 of their channels. */
export function upFiltered(pixels, width, height, channels) {
  const stride = 1 + channels * width;
  const rows = new Uint8Array(stride * height);
  for (let y = 0, from = 0; y < height; y++) {
    let to = y * stride;
    rows[to++] = UP;
    for (let x = 0; x < width; x++, from += 4) {
      for (let c = 0; c < channels; c++) rows[to++] = pixels[from + c] - (y ? pixels[from + c - 4 * width] : 0);
    }
  }
  return rows;
}

/** Return a PNG file of filtered rows. colour: its colour type. extra: further chunks, [[name, bytes]]. */
export async function pngFile(width, height, bits, colour, rows, extra = []) {
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint8(8, bits);
  header.setUint8(9, colour);
  const parts = [["IHDR", new Uint8Array(header.buffer)], ...extra, ["IDAT", await deflate(rows)], ["IEND", new Uint8Array()]];
  return new Blob([SIGNATURE, ...parts.flatMap(([name, bytes]) => chunk(name, bytes))], { type: "image/png" });
}

export async function deflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function chunk(name, bytes) {
  const head = new Uint8Array(8);
  new DataView(head.buffer).setUint32(0, bytes.length);
  for (let i = 0; i < 4; i++) head[4 + i] = name.charCodeAt(i);
  const check = new DataView(new ArrayBuffer(4));
  check.setUint32(0, ~crc(bytes, crc(head.subarray(4), ~0)) >>> 0);
  return [head, bytes, check];
}

function crc(bytes, value) {
  for (let i = 0; i < bytes.length; i++) value = CRC_TABLE[(value ^ bytes[i]) & 255] ^ (value >>> 8);
  return value;
}
