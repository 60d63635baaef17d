// The pipeline in JavaScript: prompts and seeds in, images out, by the two graphs that `ratlip export onnx` writes.
// Knows nothing of the page; the libraries are handed to it, so that tests can run it without a browser.

import { latents } from "./noise.js";

const KEPT_EMBEDDINGS = 64;

export class Model {
  /**
   * @param ort onnxruntime-web's module, ready to make sessions
   * @param Tokenizer the class of @huggingface/tokenizers
   * @param config model.json
   * @param files {text, image: bytes of the graphs; tokenizer, tokenizerConfig: parsed JSON}
   */
  static async load(ort, Tokenizer, config, files) {
    const model = new Model();
    Object.assign(model, { ort, config, embeddings: new Map() });
    model.tokenizer = new Tokenizer(files.tokenizer, files.tokenizerConfig);
    // Rewriting the graphs takes a second at every visit and makes an image a few milliseconds faster.
    const options = { graphOptimizationLevel: "disabled" };
    model.text = await ort.InferenceSession.create(files.text, options);
    model.image = await ort.InferenceSession.create(files.image, options);
    return model;
  }

  /** Token ids, cut and padded to the text tower's length; and whether the prompt was cut. */
  ids(prompt) {
    const { max_tokens: length, pad_token_id: pad } = this.config;
    const all = this.tokenizer.encode(prompt).ids;
    const cut = all.length > length;
    const ids = cut ? [...all.slice(0, length - 1), all.at(-1)] : all;
    return { ids: [...ids, ...Array(length - ids.length).fill(pad)], cut };
  }

  /** Raw text embedding of a prompt, kept for the next call. */
  async embed(prompt) {
    if (!this.embeddings.has(prompt)) {
      const ids = this.ids(prompt).ids;
      const input = new this.ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
      const { prompt_embeds: output } = await this.text.run({ input_ids: input });
      if (this.embeddings.size === KEPT_EMBEDDINGS) this.embeddings.delete(this.embeddings.keys().next().value);
      this.embeddings.set(prompt, output.data);
    }
    return this.embeddings.get(prompt);
  }

  /**
   * One image as float32 [3, S, S], nominally in [-1, 1].
   *
   * With a second prompt or seed, `mix` in [0, 1] says how far to go there: embeddings along the line between the two,
   * noise on the great circle.
   */
  async generate({ prompt, seed, truncation = null, toPrompt = prompt, toSeed = seed, mix = 0 }) {
    const size = this.config.noise_dim;
    const from = latents(size, seed, truncation);
    const noise = toSeed === seed ? from : slerp(from, latents(size, toSeed, truncation), mix);
    const embeds = lerp(await this.embed(prompt), await this.embed(toPrompt), mix);
    const row = (values) => new this.ort.Tensor("float32", values, [1, values.length]);
    const { sample } = await this.image.run({ noise: row(noise), prompt_embeds: row(embeds) });
    return sample.data;
  }
}

// These two are those of ratlip_hf.latents.

function lerp(from, to, mix) {
  return from.map((value, i) => (1 - mix) * value + mix * to[i]);
}

function slerp(from, to, mix) {
  const [start, end] = [from, to].map((vector) => Math.hypot(...vector));
  const cosine = from.reduce((sum, value, i) => sum + value * to[i], 0) / (start * end);
  const angle = Math.acos(Math.min(1, Math.max(-1, cosine)));
  const length = (1 - mix) * start + mix * end;
  const [first, last] = [1 - mix, mix].map((part) => Math.sin(part * angle) / Math.sin(angle));
  return from.map((value, i) => length * ((first * value) / start + (last * to[i]) / end));
}

/** A sample as the bytes of an RGBA image, rounded as the pipeline rounds. */
export function pixels(sample) {
  const area = sample.length / 3;
  const bytes = new Uint8ClampedArray(4 * area).fill(255); // it clamps, and rounds halves to even, as numpy does
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) bytes[4 * i + c] = Math.fround(sample[c * area + i] * 0.5 + 0.5) * 255;
  }
  return bytes;
}
