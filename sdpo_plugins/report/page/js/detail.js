// The opened rollout: what the student wrote, what the teacher read, and its verdict on each token.

const KINDS = { question: "question", demonstration: "demonstration", feedback: "feedback", template: "template", other: "other turns" };

function legend(repaint) {
  const range = Number(state.range);
  const choice = make("select", { id: "range", onchange: (event) => { keep({ range: event.target.value }); repaint(); } },
    RANGES.map((value) => make("option", { value, text: `±${value} nats`, selected: value === state.range })));
  const ticks = (limit) => [`≤ −${limit}`, "0", `≥ +${limit}`].map((text) => make("span", { text }));
  const scale = make("div", { class: "scale-ticks" }, ticks(range));
  choice.addEventListener("change", () => scale.replaceChildren(...ticks(Number(state.range))));
  return make("div", { class: "legend" },
    make("div", { class: "scale-box" }, make("div", { class: "scale-names" }, make("span", { text: "rejects" }), make("span", { text: "approves" })), make("div", { class: "scale", role: "img", "aria-label": "Colours from red, the teacher rejects, to blue, the teacher approves" }), scale),
    make("label", { class: "inline" }, "Full colour at ", choice),
    make("span", { class: "muted legend-note" }, make("span", { class: "token masked", text: "grey" }), " carries no loss"));
}

function turns(messages) {
  return messages.map((message) => make("div", { class: "turn" },
    message.role && make("span", { class: "role", text: message.role }),
    make("pre", {}, message.parts
      ? message.parts.map((part) => make("span", { class: `part part-${part.kind in KINDS ? part.kind : "other"}`, title: KINDS[part.kind] ?? part.kind, text: part.text }))
      : String(message.content ?? ""))));
}

function teacherSide(found, place, open) {
  const box = make("section", { class: "panel side", "aria-label": "What the teacher read" }, make("h3", { text: "The teacher's prompt" }));
  if (!found.teacherPrompt) {
    box.append(make("p", { class: "muted", text: "The teacher read nothing more than the student: there was no demonstration and no feedback to add." }));
    return [box, ...feedback(found), ...rewards(found)];
  }
  const used = new Set(found.teacherPrompt.flatMap((message) => message.parts.map((part) => part.kind)));
  const kinds = Object.keys(KINDS).filter((kind) => used.has(kind));
  box.append(make("p", { class: "kinds" }, kinds.map((kind) => make("span", { class: `kind part-${kind}`, text: KINDS[kind] }))), ...turns(found.teacherPrompt));
  const cut = Object.entries(found.truncated).filter(([, tokens]) => tokens);
  if (cut.length) box.append(make("p", { class: "notice", text: `Shortened to fit: ${cut.map(([part, tokens]) => `${count(tokens, "token")} of the ${part}`).join(", ")}.` }));
  if (found.demonstrationRow !== null) box.append(demonstration(found, place, open));
  return [box, ...feedback(found), ...rewards(found)];
}

function demonstration(found, place, open) {
  const at = rollouts.id.findIndex((id, other) => id === found.demonstrationId && rollouts.run[other] === rollouts.run[place]);
  if (at < 0) return make("p", { class: "notice", text: `Row ${found.demonstrationRow} of the same batch demonstrates; it is not among the recorded rollouts.` });
  return make("button", { type: "button", class: "jump", onclick: () => open(at, { reveal: true }) }, `Open the rollout that demonstrates (row ${found.demonstrationRow})`);
}

function feedback(found) {
  if (!found.feedback) return [];
  return [make("section", { class: "panel side", "aria-label": "Feedback" },
    make("h3", {}, "Feedback ", make("span", { class: "muted", text: found.feedbackUsed ? "shown to the teacher" : "not shown to the teacher" })),
    make("pre", { class: "feedback", text: found.feedback }))];
}

function rewards(found) {
  const parts = Object.entries(found.rewards);
  if (!parts.length) return [];
  return [make("section", { class: "panel side", "aria-label": "Reward" }, make("h3", { text: "Parts of the reward" }),
    make("dl", { class: "rewards" }, parts.map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: number(value) })))))];
}

function badges(place, found) {
  const badge = (text, kind = "") => make("span", { class: `badge ${kind}`, text });
  const success = rollouts.success[place];
  return [
    badge(success ? "success" : "failure", success ? "good" : "poor"),
    badge(`reward ${number(rollouts.reward[place])}`),
    badge(rollouts.active[place] ? "active" : "inactive"),
    rollouts.tokens[place] !== null && badge(count(rollouts.tokens[place], "token")),
    rollouts.gap[place] !== null && badge(`mean gap ${signed(rollouts.gap[place])}`),
    rollouts.disagreement[place] !== null && badge(`disagreement ${rollouts.disagreement[place].toFixed(2)}`),
    rollouts.divergence[place] !== null && badge(`divergence ${number(rollouts.divergence[place])}`),
    found.cutOff && badge("cut off at the length limit", "poor"),
  ];
}

function answer(place, found) {
  const box = make("section", { class: "panel side", "aria-label": "Answer" });
  const values = found.values;
  if (!values) {
    box.append(make("h3", { text: "The answer" }), make("pre", { class: "response", text: found.response || "(empty)" }), make("p", { class: "notice", text: rollouts.why[place] }));
    return { parts: [box], focusToken: null };
  }
  const below = make("section", { class: "panel side", id: "alternatives", "aria-label": "Alternatives", "aria-live": "polite" });
  const choose = (at) => {
    keep({ token: String(at) });
    strip.mark(at);
    below.replaceChildren(...alternatives(values, at));
  };
  const strip = tokenStrip(values, (at) => {
    choose(at);
    below.scrollIntoView({ block: "nearest", behavior: calm.matches ? "instant" : "smooth" });
  });
  const repaint = () => { strip.repaint(); choose(Number(state.token)); };
  box.append(make("h3", {}, "The answer ", make("span", { class: "muted", text: "coloured by log q − log π" })), legend(repaint), strip.strip);
  if (!values.at.length) {
    box.append(make("p", { class: "muted", text: "The answer is empty." }));
    return { parts: [box], focusToken: null };
  }
  const asked = state.token === "" ? NaN : Number(state.token);
  choose(Number.isInteger(asked) && asked >= 0 && asked < values.at.length ? asked : mostTelling(values));
  return { parts: [box, below], focusToken: () => strip.spans[Number(state.token)].focus() };
}

const detailView = { focusToken: null };

async function showDetail(place, open) {
  const holder = byId("detail");
  tip.hide();
  if (place === null) {
    detailView.focusToken = null;
    holder.replaceChildren(make("p", { class: "panel empty", text: total ? "Choose a rollout from the list." : "This run has recorded no rollouts yet." }));
    return;
  }
  const found = await loadDetail(place);
  if (opened.place !== place) return;
  const { parts, focusToken } = answer(place, found);
  detailView.focusToken = focusToken;
  const where = [severalRuns && data.names[rollouts.run[place]], `row ${rollouts.row[place]}`, rollouts.group[place] !== null && `group ${rollouts.group[place]}`, `rollout ${rollouts.id[place]}`].filter(Boolean).join(" · ");
  const head = make("header", { class: "detail-head" },
    make("h2", {}, `Step ${rollouts.step[place].toLocaleString("en")} `, make("span", { class: "muted", text: where })),
    make("div", { class: "badges" }, badges(place, found)));
  const prompt = make("section", { class: "panel side prompt", "aria-label": "Prompt" }, make("h3", { text: "The prompt" }), ...turns(found.prompt));
  holder.replaceChildren(head, make("div", { class: "columns" },
    make("div", { class: "column" }, prompt, ...parts), make("div", { class: "column" }, teacherSide(found, place, open))));
  holder.dataset.place = place;
}
