// The verdict of the tales' grammar, as a text is written.

const RULES = {
  pronoun: "the pronouns follow from the hero’s name", thing: "the thing that was lost is the one that is found",
  order: "friends help in the order in which they were met", count: "what is announced is counted",
};

async function judge(passage, line, asked) {
  passage.isStale = true;
  if (!model?.tales || passage.isJudged) return;
  passage.isJudged = true; // a verdict is on its way; what is written meanwhile gets the next one
  while (passage.isStale) {
    passage.isStale = false;
    await new Promise((resolve) => setTimeout(resolve, 150));
    const text = passage.text() + (passage.tail?.textContent ?? "");
    try {
      const found = text && text.length <= 10000 && (await json("/playground/verdict", { text, ...(asked && { request: asked }) }));
      verdict(passage, line, text, found);
    } catch (error) {
      verdict(passage, line, text, null);
      fail(error.message);
    }
  }
  passage.isJudged = false;
}

function verdict(passage, line, text, found) {
  line.hidden = !found?.judged;
  const viable = found?.judged ? [...text].slice(0, found.viable).join("").length : Infinity; // in UTF-16
  const isBroken = viable < text.length;
  let end = 0;
  for (const token of passage.tokens) token.element.classList.toggle("bad", (end += token.text.length) > viable);
  passage.tail?.classList.toggle("bad", isBroken);
  if (line.hidden) return;
  line.className = `verdict ${found.whole ? "whole" : isBroken ? "broken" : ""}`;
  const name = found.rule?.replace(/^grammar: /, ""), isNamed = name && name !== "unknown sentence";
  const rule = isNamed ? `Breaks the rule “${name}”${RULES[name] ? `: ${RULES[name]}` : ""}. ` : "";
  const words = found.whole ? "✓ A whole tale." : !isBroken ? "So far this can be the beginning of a tale."
    : `✗ ${rule}No tale continues like this after “${text.slice(0, viable).split(/(?<=\s)/).slice(-5).join("")}”.`;
  if (line.textContent !== words) line.textContent = words; // a screen reader says each change
}
