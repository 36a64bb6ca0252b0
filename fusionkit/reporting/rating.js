// one pair at a time; what is chosen is kept in the browser under the hash of the sheet
const main = document.querySelector("main"), sheet = main.dataset.sheet, place = `rating-${sheet}`;
const pairs = [...document.querySelectorAll("section")], buttons = [...document.querySelectorAll("[data-choice]")];
const rater = document.getElementById("rater"), state = document.getElementById("state");
let choices = {}, at = 0, isKept = true;
try {
  const found = JSON.parse(localStorage.getItem(place) ?? "{}");
  choices = Object.fromEntries(Object.entries(found.choices ?? {}).filter(([pair, choice]) =>
    pairs[pair - 1] && buttons.some(button => button.dataset.choice === choice)));
  rater.value = String(found.rater ?? "");
} catch { choices = {}; }
const keep = () => {
  try { localStorage.setItem(place, JSON.stringify({ rater: rater.value, choices })); isKept = true; } catch { isKept = false; }
};
const firstOpen = from => {
  for (let step = 0; step < pairs.length; step++) {
    const next = (from + step) % pairs.length;
    if (!choices[next + 1]) return next;
  }
  return -1;
};
const say = text => { if (state.textContent !== text) state.textContent = text; }; // what is said anew is read out anew
const show = (next, focus = true) => {
  at = Math.max(0, Math.min(pairs.length - 1, next));
  pairs.forEach((section, number) => { section.hidden = number !== at; });
  for (const button of buttons) button.setAttribute("aria-pressed", String(choices[at + 1] === button.dataset.choice));
  const done = Object.keys(choices).length;
  say(`${done} of ${pairs.length} pairs rated` + (done === pairs.length ? ": all done, download the result" : "")
    + (isKept ? "" : "; this browser keeps nothing, download the result before you close the page"));
  if (!focus) return;
  const title = pairs[at].querySelector("h2");
  title.focus({ preventScroll: true });
  title.scrollIntoView({ block: "start" }); // each pair in the same place
};
const choose = choice => {
  choices[at + 1] = choice;
  keep();
  const next = firstOpen(at + 1);
  show(next < 0 ? at : next);
};
for (const button of buttons) button.addEventListener("click", event => {
  if (event.detail < 2) choose(button.dataset.choice); // the second half of a double click would choose for the next pair
});
document.getElementById("previous").addEventListener("click", () => show(at - 1));
document.getElementById("next").addEventListener("click", () => show(at + 1));
document.getElementById("anew").addEventListener("click", () => {
  if (confirm("Forget all that was chosen?")) {
    choices = {};
    rater.value = ""; // whoever comes next is somebody else
    keep();
    show(0);
    rater.focus();
  }
});
document.getElementById("download").addEventListener("click", () => {
  if (!rater.value.trim()) {
    say("Write your name first, or any word by which your result is known.");
    rater.focus();
    return;
  }
  const result = { sheet, rater: rater.value.trim(), pairs: pairs.length, choices };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(result, null, 1)], { type: "application/json" }));
  link.download = `rating_${rater.value.trim().replace(/[^\p{L}\p{N}_-]+/gu, "_")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
rater.addEventListener("input", () => { keep(); show(at, false); });
document.addEventListener("keydown", event => {
  if (event.target === rater || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const button = buttons[(Number(event.key) || Number(event.code.replace("Digit", ""))) - 1]; // French digits want Shift
  if (button) choose(button.dataset.choice);
  else if (event.key.toLowerCase() === "n") show(at + 1);
  else if (event.key.toLowerCase() === "p") show(at - 1);
});
show(Math.max(0, firstOpen(0)), false);
