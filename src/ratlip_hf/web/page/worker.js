// Loads libraries and model, then makes one image per message: {id, ...arguments of Model.generate} in,
// {id, size, bytes, cut, milliseconds} out. Before that, {loaded, total} in bytes, and {ready}; {failed} ends it all.

import * as ort from "./libraries/ort.wasm.bundle.min.mjs";
import { Tokenizer } from "./libraries/tokenizers.min.mjs";
import { Model, pixels } from "./model.js";

const WASM = "libraries/ort-wasm-simd-threaded.wasm.gz";

async function fetched(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} is missing (HTTP ${response.status})`);
  return response;
}

/** A file's bytes, unpacked; some servers mark .gz files so that the browser has unpacked them already. */
async function download(path, progress) {
  const chunks = [];
  for (let reader = (await fetched(path)).body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    progress(value.length);
  }
  const blob = new Blob(chunks);
  const [first, second] = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  const packed = first === 0x1f && second === 0x8b;
  const stream = packed ? blob.stream().pipeThrough(new DecompressionStream("gzip")) : blob.stream();
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load() {
  const config = await (await fetched("model/model.json")).json();
  const total = Object.values(config.downloads).reduce((sum, size) => sum + size, 0);
  let loaded = 0;
  const progress = (bytes) => postMessage({ loaded: Math.min((loaded += bytes), total), total });
  const paths = [WASM, "model/text_encoder.onnx.gz", "model/generator.onnx.gz"];
  const jsons = ["model/tokenizer.json", "model/tokenizer_config.json"];
  const [binaries, [tokenizer, tokenizerConfig]] = await Promise.all([
    Promise.all(paths.map((path) => download(path, progress))),
    Promise.all(jsons.map(async (path) => (await fetched(path)).json())),
  ]);
  const [wasm, text, image] = binaries;
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = wasm;
  return Model.load(ort, Tokenizer, config, { text, image, tokenizer, tokenizerConfig });
}

const model = load();
model.then(
  () => postMessage({ ready: true }),
  (error) => postMessage({ failed: String(error.message ?? error) }),
);

onmessage = async ({ data: { id, ...request } }) => {
  try {
    const { config } = await model;
    const start = performance.now();
    const bytes = pixels(await (await model).generate(request));
    const milliseconds = performance.now() - start;
    const cut = (await model).ids(request.prompt).cut;
    postMessage({ id, size: config.sample_size, bytes, cut, milliseconds }, [bytes.buffer]);
  } catch (error) {
    postMessage({ failed: String(error.message ?? error) });
  }
};
