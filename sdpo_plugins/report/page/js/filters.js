// Which rollouts are shown. A filter is a test on a rollout's place in the list.

const asNumber = (text) => (text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text));

let texts = null;

/** Return a function that says whether a rollout passes all filters. */
function makeFilter() {
  const tests = [];
  if (state.run !== "") tests.push((place) => data.names[rollouts.run[place]] === state.run);
  for (const name of ["success", "active", "feedback", "demonstration"]) {
    if (state[name] !== "") tests.push((place) => rollouts[name][place] === Number(state[name]));
  }
  for (const [column, low, high] of [["reward", state.rewardMin, state.rewardMax], ["step", state.stepMin, state.stepMax]]) {
    const [from, to] = [asNumber(low), asNumber(high)];
    if (from !== null) tests.push((place) => rollouts[column][place] !== null && rollouts[column][place] >= from);
    if (to !== null) tests.push((place) => rollouts[column][place] !== null && rollouts[column][place] <= to);
  }
  const words = state.text.toLowerCase().trim();
  if (words && texts) tests.push((place) => texts[place].includes(words));
  return (place) => tests.every((test) => test(place));
}

function startFilters(changed) {
  const form = byId("filters");
  byId("f-run").append(...data.names.map((name) => make("option", { value: name, text: name })));
  byId("f-run-label").hidden = !severalRuns;
  const fields = [...form.querySelectorAll("[data-filter]")];

  async function apply() {
    if (state.text.trim() && !texts) texts = await loadTexts();
    byId("f-reset").disabled = fields.every((field) => state[field.dataset.filter] === "");
    changed();
  }
  function fill() {
    for (const field of fields) field.value = state[field.dataset.filter];
    byId("f-sort").value = state.sort;
  }
  let waiting;
  for (const field of fields) {
    field.addEventListener("input", () => {
      keep({ [field.dataset.filter]: field.value });
      clearTimeout(waiting);
      waiting = setTimeout(apply, field.type === "search" ? 120 : 0);
    });
  }
  byId("f-sort").addEventListener("change", (event) => { keep({ sort: event.target.value }); changed(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    keep(Object.fromEntries(fields.map((field) => [field.dataset.filter, ""])));
    fill();
    apply();
  });
  fill();
  return { apply, fill };
}
