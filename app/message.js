// The format of all messages between page and server; serving/message.py is the other end.

export const MEDIA_TYPE = "application/octet-stream";

/** Return a Blob of a header and parts, which are Blobs or byte arrays. */
export function pack(header, parts) {
  const lengths = parts.map((part) => part.size ?? part.byteLength);
  const text = new TextEncoder().encode(JSON.stringify({ ...header, parts: lengths }));
  const length = new DataView(new ArrayBuffer(4));
  length.setUint32(0, text.length);
  return new Blob([length, text, ...parts], { type: MEDIA_TYPE });
}

/** Return { header, parts } of an ArrayBuffer. parts: Blobs. */
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let start = 4 + length;
  const parts = header.parts.map((size) => {
    const part = new Blob([new Uint8Array(buffer, start, size)]);
    start += size;
    return part;
  });
  return { header, parts };
}
