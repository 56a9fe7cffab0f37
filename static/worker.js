// Runs the network outside of the page's thread: onnxruntime's WebAssembly with SIMD, and threads if the page is isolated.

import { baseOf, levelOf } from "./base.js";
import * as ort from "./ort/ort.wasm.min.mjs";

const MOST_THREADS = 4;

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;

let session = null; // a promise

async function load(file) {
  ort.env.wasm.wasmBinary = await unpacked(new URL("./ort/ort-wasm-simd-threaded.wasm.gz", import.meta.url));
  return ort.InferenceSession.create(new URL(file, import.meta.url).href, { executionProviders: ["wasm"] });
}

/** Return the bytes of a .gz file, which some hosts already decompress. */
async function unpacked(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} is missing`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes.buffer;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** Convert interleaved RGB values to three planes. */
function planesOf(values) {
  const size = values.length / 3;
  const planes = new Float32Array(values.length);
  for (let i = 0; i < size; i++) for (let c = 0; c < 3; c++) planes[c * size + i] = values[3 * i + c];
  return planes;
}

/**
 * Receives a picture { width, height, pixels, valid }, the region to fill, and the network's facts. Answers with
 * { filled, seconds, threads }. pixels, and filled of the region: RGBA; valid: 0 or 1. The region's sides are multiples
 * of facts.multiple, so it may extend beyond the picture.
 */
self.onmessage = async ({ data: { picture, region, facts } }) => {
  try {
    session ??= load(facts.file);
    const network = await session;
    const began = performance.now();
    const level = levelOf(picture, region);
    const base = facts.base === "none" ? null : baseOf(picture, region, facts);
    const size = level.valid.length;
    const shape = [level.height, level.width];
    const inputs = {
      image: new ort.Tensor("float32", planesOf(level.values), [1, 3, ...shape]),
      mask: new ort.Tensor("float32", Float32Array.from(level.valid), [1, 1, ...shape]),
    };
    if (facts.plate) inputs.base = new ort.Tensor("float32", planesOf(base), [1, 3, ...shape]);
    const { prediction } = await network.run(inputs);
    const filled = new Uint8ClampedArray(4 * size); // rounds and clamps
    for (let i = 0; i < size; i++) {
      for (let c = 0; c < 3; c++) filled[4 * i + c] = 255 * (prediction.data[c * size + i] + (base ? base[3 * i + c] : 0));
    }
    prediction.dispose();
    const seconds = (performance.now() - began) / 1000;
    self.postMessage({ filled, seconds, threads: ort.env.wasm.numThreads }, [filled.buffer]);
  } catch (error) {
    session = null;
    self.postMessage({ error: `the network could not fill this: ${error.message ?? error}` });
  }
};
