// What an image is known by outside the page: the link that shows it again, its file name, and its lines of Python.

const LARGEST_SEED = 2 ** 32 - 1;

/** {prompt, seed, truncation} as the part of a link after "#". */
export function toHash({ prompt, seed, truncation }) {
  const values = new URLSearchParams({ prompt, seed });
  if (truncation !== null) values.set("truncation", truncation);
  return `#${values}`;
}

/** What a link holds; values that are missing or make no sense are left out. */
export function fromHash(hash) {
  const values = new URLSearchParams(hash.replace(/^#/, ""));
  const found = {};
  if (values.has("prompt")) found.prompt = values.get("prompt").slice(0, 1000);
  if (values.has("seed") && isSeed(values.get("seed"))) found.seed = Number(values.get("seed"));
  const truncation = Number(values.get("truncation"));
  if (truncation >= 0.1 && truncation <= 3) found.truncation = truncation;
  return found;
}

/** Whether a text is a seed: a whole number of 32 bits, which is what torch reads of one. */
export function isSeed(text) {
  return /^\d{1,10}$/.test(text) && Number(text) <= LARGEST_SEED;
}

export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0] % 100000;
}

export function fileName({ prompt, seed }) {
  const words = prompt.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 48).replace(/^-+|-+$/g, "");
  return `${words || "image"}-${seed}.png`;
}

const seeded = (seed) => `torch.Generator().manual_seed(${seed})`;

/** The lines of Python that make the same image; JSON's strings are Python's, too. */
export function pythonLines({ prompt, seed, truncation, toPrompt = prompt, toSeed = seed, mix = 0 }, config) {
  const cut = truncation === null ? "" : `, truncation=${truncation}`;
  const lines = ["import torch", `from ratlip_hf import ${config.python_import}`];
  if (toSeed !== seed) lines.push("from ratlip_hf.latents import prepare_latents, slerp");
  lines.push("");
  lines.push(`pipe = RATLIPPipeline.from_pretrained(${config.python_source})`);
  const [a, b] = [prompt, toPrompt].map((text) => JSON.stringify(text));
  if (toSeed !== seed) {
    lines.push(`seeds = [${seeded(seed)}, ${seeded(toSeed)}]`);
    lines.push(`a, b = prepare_latents(2, ${config.noise_dim}, seeds${cut})`);
    lines.push(`image = pipe(${a}, latents=slerp(a, b, ${mix})[None]).images[0]`);
  } else if (toPrompt !== prompt) {
    lines.push(`a, b = pipe.encode_prompt([${a}, ${b}])[0]`);
    lines.push(`text = torch.lerp(a, b, ${mix})[None]`);
    lines.push(`image = pipe(prompt_embeds=text, generator=${seeded(seed)}${cut}).images[0]`);
  } else {
    lines.push(`image = pipe(${a}, generator=${seeded(seed)}${cut}).images[0]`);
  }
  return lines.join("\n");
}
