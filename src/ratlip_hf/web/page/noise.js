// torch's random numbers on a CPU: torch.Generator().manual_seed(seed) and torch.randn(n, generator=...).
// Uniform numbers are torch's to the bit; normal ones to rounding, as torch's own differ between processors.

const LENGTH = 624;
const SHIFT = 397;

/** The generator MT19937 with torch's ways of drawing from it. Like torch, it reads the lower 32 bits of the seed. */
export class Generator {
  constructor(seed) {
    this.state = new Uint32Array(LENGTH);
    this.state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < LENGTH; i++) {
      const last = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, last ^ (last >>> 30)) + i;
    }
    this.position = LENGTH;
    this.spare = null; // the second sample of the last pair, which torch keeps for the next call
  }

  /** 32 random bits. */
  bits() {
    if (this.position === LENGTH) this.#twist();
    let y = this.state[this.position++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  #twist() {
    const s = this.state;
    for (let i = 0; i < LENGTH; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % LENGTH] & 0x7fffffff);
      s[i] = s[(i + SHIFT) % LENGTH] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.position = 0;
  }

  /** In [0, 1), of 24 bits: torch's float32. */
  float() {
    return (this.bits() & 0xffffff) / 2 ** 24;
  }

  /** In [0, 1), of 53 bits: torch's float64. */
  double() {
    const high = this.bits() & 0x1fffff;
    return (high * 2 ** 32 + this.bits()) / 2 ** 53;
  }

  /** `count` normal numbers as torch.randn draws them: sixteen at a time, and by pairs where there are fewer. */
  normal(count) {
    const values = new Float32Array(count);
    if (count < 16) return values.map(() => this.#one());
    for (let i = 0; i < count; i++) values[i] = this.float();
    for (let i = 0; i + 16 <= count; i += 16) boxMuller(values.subarray(i, i + 16));
    if (count % 16) {
      const last = values.subarray(count - 16);
      for (let i = 0; i < 16; i++) last[i] = this.float();
      boxMuller(last);
    }
    return values;
  }

  #one() {
    if (this.spare !== null) {
      const value = this.spare;
      this.spare = null;
      return value;
    }
    const angle = 2 * Math.PI * this.double();
    const radius = Math.sqrt(-2 * Math.log1p(-this.double()));
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }
}

function boxMuller(sixteen) {
  for (let i = 0; i < 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - sixteen[i]));
    const angle = 2 * Math.PI * sixteen[i + 8];
    sixteen[i] = radius * Math.cos(angle);
    sixteen[i + 8] = radius * Math.sin(angle);
  }
}

/** The noise of one image, as the pipeline's `generator=torch.Generator().manual_seed(seed), truncation=truncation`. */
export function latents(count, seed, truncation = null) {
  const generator = new Generator(seed);
  const row = generator.normal(count);
  if (truncation === null) return row;
  const bound = Math.fround(truncation);
  for (;;) {
    const outside = [...row.keys()].filter((i) => Math.abs(row[i]) > bound);
    if (!outside.length) return row;
    const again = generator.normal(outside.length);
    outside.forEach((i, k) => (row[i] = again[k]));
  }
}
