// The network, off the page's thread: onnxruntime's WebAssembly with SIMD, and threads where the page is isolated.

import * as ort from "./ort/ort.wasm.min.mjs";

const MOST_THREADS = 4;

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;

let session = null; // a promise

async function load(file) {
  ort.env.wasm.wasmBinary = await unpacked(new URL("./ort/ort-wasm-simd-threaded.wasm.gz", import.meta.url));
  return ort.InferenceSession.create(new URL(file, import.meta.url).href, { executionProviders: ["wasm"] });
}

/** The bytes of a .gz file, which some hosts unpack on the way. */
async function unpacked(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} is missing`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes.buffer;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** From { width, height, pixels, valid, file } to { filled, seconds, threads }. pixels, filled: RGBA; valid: 0 or 1. */
self.onmessage = async ({ data: { width, height, pixels, valid, file } }) => {
  try {
    session ??= load(file);
    const network = await session;
    const began = performance.now();
    const size = width * height;
    const image = new Float32Array(3 * size);
    const mask = new Float32Array(size);
    for (let i = 0; i < size; i++) {
      mask[i] = valid[i];
      for (let c = 0; c < 3; c++) image[c * size + i] = pixels[4 * i + c] / 255;
    }
    const { composite } = await network.run({
      image: new ort.Tensor("float32", image, [1, 3, height, width]),
      mask: new ort.Tensor("float32", mask, [1, 1, height, width]),
    });
    const filled = new Uint8ClampedArray(4 * size); // it rounds
    for (let i = 0; i < size; i++) {
      for (let c = 0; c < 3; c++) filled[4 * i + c] = composite.data[c * size + i] * 255;
    }
    composite.dispose();
    const seconds = (performance.now() - began) / 1000;
    self.postMessage({ filled, seconds, threads: ort.env.wasm.numThreads }, [filled.buffer]);
  } catch (error) {
    session = null;
    self.postMessage({ error: `the network could not fill this: ${error.message ?? error}` });
  }
};
