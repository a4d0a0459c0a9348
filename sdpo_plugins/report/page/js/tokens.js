// The answer, token by token: colours, the little window at the pointer, and the alternatives of one token.

const RANGES = ["1", "2", "4"];
/** So short an answer is shown in large letters. */
const FEW = 10;

const gapOf = (values, at) => (values.student[at] === null || values.teacher[at] === null ? null : (values.student[at] - values.teacher[at]) / 1000);

/** A token's text with its white space visible, but faint. */
function pieceNodes(piece) {
  if (piece === "") return [make("span", { class: "ws", text: "∅" })];
  return visible(piece).split(/([·⏎⇥␍]+)/).filter(Boolean)
    .map((part) => (/^[·⏎⇥␍]/.test(part) && /[ \n\t\r]/.test(piece) ? make("span", { class: "ws", text: part }) : document.createTextNode(part)));
}

function verdict(gap) {
  if (gap === null) return "carries no loss";
  if (Math.abs(gap) < 0.005) return "as likely for the teacher";
  const times = Math.exp(Math.abs(gap));
  const factor = times >= 1000 ? "over 1,000" : times.toFixed(times < 10 ? 2 : 0);
  return gap > 0 ? `approved: ${factor}× as likely for the teacher` : `rejected: ${factor}× less likely for the teacher`;
}

function paint(element, gap) {
  const range = Number(state.range);
  const share = gap === null ? 0 : Math.min(Math.abs(gap) / range, 1);
  element.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);
  element.classList.toggle("approve", gap !== null && gap > 0);
  element.classList.toggle("reject", gap !== null && gap < 0);
}

/** Rows of (name, value) that the tip and the token's heading show. */
function tokenFacts(values, at) {
  const gap = gapOf(values, at);
  const rows = [["token id", String(values.ids[values.at[at]])]];
  if (gap === null && values.student[at] === null) return [...rows, ["", "masked: carries no loss"]];
  return [...rows,
    ["student π", percent(values.student[at])], ["teacher q", percent(values.teacher[at])],
    ["log q − log π", signed(gap)], ["divergence", `${number(values.divergence[at], 4)} nats`], ["entropy", `${number(values.entropy[at])} nats`]];
}

const tip = {
  /** Show some elements below a place of the window, or above it where there is no room. */
  fill(place, ...children) {
    const box = byId("tip");
    box.replaceChildren(...children);
    box.hidden = false;
    const size = box.getBoundingClientRect();
    const fits = place.bottom + 6 + size.height < innerHeight;
    box.style.left = `${Math.min(Math.max(8, place.left), innerWidth - size.width - 8)}px`;
    box.style.top = `${fits ? place.bottom + 6 : Math.max(8, place.top - size.height - 6)}px`;
  },
  show(element, values, at) {
    tip.fill(element.getBoundingClientRect(),
      make("div", { class: "tip-head" }, make("code", {}, pieceNodes(values.pieces[values.at[at]])), make("span", { class: "muted", text: ` ${at + 1} of ${values.at.length}` })),
      make("div", { class: "tip-verdict", text: verdict(gapOf(values, at)) }),
      make("dl", {}, tokenFacts(values, at).map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value })))));
  },
  hide() { byId("tip").hidden = true; },
};

/** The token that the teacher disagrees with most; the first one if there is none. */
function mostTelling(values) {
  let best = 0;
  let size = -1;
  values.at.forEach((_, at) => {
    const gap = Math.abs(gapOf(values, at) ?? -1);
    if (gapOf(values, at) !== null && gap > size) [best, size] = [at, gap];
  });
  return best;
}

/** The answer as tokens. `choose` is called with the place of one that is clicked, or entered. */
function tokenStrip(values, choose) {
  const strip = make("div", { class: values.at.length <= FEW ? "tokens few" : "tokens", role: "group", "aria-label": "Tokens of the answer; arrow keys move, Enter shows the alternatives" });
  const spans = values.at.map((entry, at) => {
    const gap = gapOf(values, at);
    const piece = values.pieces[entry];
    const span = make("span", {
      class: values.mask[at] ? "token" : "token masked", role: "button", tabindex: "-1", "data-at": at, "aria-pressed": "false",
      "aria-label": `${visible(piece)}, token ${at + 1}, ${gap === null ? "masked" : `${signed(gap)} nats`}`,
    }, pieceNodes(piece));
    paint(span, gap);
    strip.append(span);
    for (const _ of piece.matchAll(/\n/g)) strip.append(make("br"));
    return span;
  });
  if (values.length > values.at.length) strip.append(make("span", { class: "muted", text: ` … ${count(values.length - values.at.length, "more token")} not recorded` }));
  const spanOf = (event) => event.target.closest?.(".token");
  strip.addEventListener("mouseover", (event) => { const span = spanOf(event); if (span) tip.show(span, values, Number(span.dataset.at)); });
  strip.addEventListener("mouseleave", tip.hide);
  strip.addEventListener("focusin", (event) => {
    const span = spanOf(event);
    if (!span) return;
    for (const other of spans) other.tabIndex = -1;
    span.tabIndex = 0;
    if (span.matches(":focus-visible")) tip.show(span, values, Number(span.dataset.at));
  });
  strip.addEventListener("focusout", tip.hide);
  strip.addEventListener("click", (event) => { const span = spanOf(event); if (span) choose(Number(span.dataset.at)); });
  strip.addEventListener("keydown", (event) => {
    const span = spanOf(event);
    if (!span) return;
    const at = Number(span.dataset.at);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") choose(at);
    else if (next !== undefined) spans[Math.min(Math.max(next, 0), spans.length - 1)].focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return {
    strip, spans,
    mark(at) {
      spans.forEach((span, place) => {
        span.setAttribute("aria-pressed", String(place === at));
        span.tabIndex = place === at ? 0 : -1;
      });
    },
    repaint() { spans.forEach((span, at) => paint(span, gapOf(values, at))); },
  };
}

/** The alternatives of one token as pairs (place in ids, −1000 × nats). */
function pairs({ counts, at, logs }, token) {
  const start = counts.slice(0, token).reduce((sum, each) => sum + each, 0);
  let milli = 0;
  return at.slice(start, start + (counts[token] ?? 0)).map((entry, rank) => [entry, (milli += logs[start + rank])]);
}

const sampledMark = () => make("span", { class: "mark", role: "img", "aria-label": "sampled", title: "sampled", text: "●" });

function alternatives(values, at) {
  const sampled = values.at[at];
  const heading = make("h3", {}, "Alternatives at ", make("code", {}, pieceNodes(values.pieces[sampled])), make("span", { class: "muted", text: ` token ${at + 1} of ${values.at.length}` }));
  const said = make("p", { class: "verdict" }, make("span", { class: "swatch" }), verdict(gapOf(values, at)));
  paint(said.firstChild, gapOf(values, at));
  const facts = make("dl", { class: "token-facts" }, tokenFacts(values, at).map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value }))));
  const [student, teacher] = [pairs(values.studentTop, at), pairs(values.teacherTop, at)];
  if (!student.length && !teacher.length) return [heading, said, facts, make("p", { class: "muted", text: values.mask[at] ? "No alternatives were recorded." : "This token is masked, for example a tool's output: the student is not trained on it." })];
  const sides = [[student, values.student[at]], [teacher, values.teacher[at]]];
  const rows = Math.max(student.length, teacher.length);
  const cells = ([entry, milli], rank) => {
    const own = entry === sampled;
    const share = Math.exp(-milli / 1000) * 100;
    return [
      make("td", { class: own ? "alt sampled" : "alt" }, make("span", { class: "rank muted", text: rank }), make("code", { title: `${visible(values.pieces[entry])}, id ${values.ids[entry]}` }, pieceNodes(values.pieces[entry])), own && sampledMark()),
      make("td", { class: "share", style: `--bar:${share.toFixed(1)}%` }, make("span", { text: percent(milli) })),
    ];
  };
  const body = make("tbody");
  for (let rank = 0; rank < rows; rank++) {
    body.append(make("tr", {}, sides.map(([side]) => (side[rank] ? cells(side[rank], rank + 1) : [make("td"), make("td")]))));
  }
  const outside = sides.map(([side, own]) => own !== null && !side.some(([entry]) => entry === sampled));
  if (outside.some(Boolean)) body.append(make("tr", { class: "outside" }, sides.map(([, own], side) => (outside[side] ? cells([sampled, own], "…") : [make("td"), make("td")]))));
  const head = make("thead", {}, make("tr", {}, make("th", { scope: "col", text: "Student" }), make("th", { scope: "col", class: "num", text: "π" }), make("th", { scope: "col", text: "Teacher" }), make("th", { scope: "col", class: "num", text: "q" })));
  return [heading, said, facts, make("div", { class: "table-scroll" }, make("table", { class: "alternatives" }, make("caption", { class: "visually-hidden", text: "Likeliest tokens of student and teacher" }), head, body)),
    make("p", { class: "muted mark-note" }, sampledMark(), "the token that was sampled")];
}
