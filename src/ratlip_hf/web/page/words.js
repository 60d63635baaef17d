// The words of a prompt that can be exchanged for others of their kind.

/**
 * The pieces of a prompt in order: {text} as it stands, or {text, kind, others} for one that can be exchanged.
 * `kinds` is [{name, words}]; words may be phrases.
 */
export function pieces(prompt, kinds) {
  const words = kinds.flatMap(({ name, words }) => words.map((word) => ({ word, name, words })));
  const pattern = words
    .map(({ word }) => word)
    .sort((a, b) => b.length - a.length)
    .map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"))
    .join("|");
  const found = prompt.split(new RegExp(`(?<![\\p{L}\\p{N}])(${pattern})(?![\\p{L}\\p{N}])`, "giu"));
  return found
    .map((text, i) => {
      if (i % 2 === 0) return { text };
      const { name, words: all } = words.find(({ word }) => word === text.toLowerCase());
      return { text, kind: name, others: all };
    })
    .filter(({ text }) => text);
}

/** The prompt with piece `index` exchanged, and "a" or "an" before it as the new word wants it. */
export function exchanged(parts, index, word) {
  const texts = parts.map(({ text }) => text);
  texts[index] = word;
  if (index > 0) {
    const article = /^[aeiou]/i.test(word) ? "an" : "a";
    texts[index - 1] = texts[index - 1].replace(/\b(a)n?(\s+)$/i, (_, a, space) => a + article.slice(1) + space);
  }
  return texts.join("");
}
