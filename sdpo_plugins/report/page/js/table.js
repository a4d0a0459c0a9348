// The list of rollouts, a DataTable of which one row is opened.

const PAGE = 50;
const COLUMN = {};
const SORTS = {
  newest: () => [[COLUMN.step, "desc"]],
  oldest: () => [[COLUMN.step, "asc"]],
  longest: () => [[COLUMN.tokens, "desc"]],
  disagreement: () => [[COLUMN.disagreement, "desc"]],
  divergence: () => [[COLUMN.divergence, "desc"]],
  reward: () => [[COLUMN.reward, "desc"]],
};

const opened = { place: null };
let table = null;

/** A column of numbers; what is missing counts as less than any. */
const numeric = (name, title, hint, format) => ({
  name, title: [title, hint], type: "num",
  value: (place, kind) => (kind === "display" ? format(rollouts[name][place]) : rollouts[name][place] ?? -Infinity),
});

const mark = (said, attributes, sign = "") => make("span", { role: "img", title: said, "aria-label": said, ...attributes }, sign);

const flag = (name, title, hint, yes, no, cross = "·") => ({
  name, title: [title, hint], type: "num",
  value: (place, kind) => {
    const on = rollouts[name][place];
    return kind === "display" ? mark(on ? yes : no, { class: on ? "yes" : "no" }, on ? "✓" : cross) : on;
  },
});

function columns() {
  const found = [
    numeric("step", "Step", "The step that first trained on it", (value) => value.toLocaleString("en")),
    severalRuns && {
      name: "run", title: ["Run", "Which run"], type: "num",
      value: (place, kind) => (kind === "display"
        ? mark(data.names[rollouts.run[place]], { class: "dot", style: `background:var(--run-${rollouts.run[place] % 6})` })
        : rollouts.run[place]),
    },
    numeric("reward", "Reward", "Reward of the answer", (value) => number(value, 2)),
    flag("success", "OK", "Whether it counts as a success", "success", "failure", "✗"),
    flag("active", "Act", "Active: the teacher had something to teach", "active", "inactive"),
    flag("feedback", "Fb", "Whether there is feedback of the environment", "feedback", "no feedback"),
    numeric("tokens", "Tok", "Tokens of the answer", (value) => number(value)),
    numeric("gap", "Gap", "Mean of log q − log π in nats: above 0 the teacher approves", (value) => signed(value)),
    numeric("disagreement", "|Gap|", "Disagreement: mean of |log q − log π| in nats", (value) => (value === null ? "–" : value.toFixed(2))),
    { ...numeric("divergence", "Div", "Mean divergence in nats", (value) => number(value)), hidden: true },
    { name: "snippet", title: ["Answer", "How the answer begins"], type: "string", unsorted: true,
      value: (place, kind) => (kind === "display" ? make("span", { text: rollouts.snippet[place] }) : rollouts.snippet[place]) },
  ].filter(Boolean);
  found.forEach((column, at) => { COLUMN[column.name] = at; });
  return found;
}

async function startTable(open) {
  const DataTable = await loadTable();
  table = new DataTable(byId("rollouts"), {
    data: Array.from({ length: total }, (_, place) => place),
    columns: columns().map((column) => ({
      name: column.name, type: column.type, className: `c-${column.name}`, visible: !column.hidden, orderable: !column.unsorted,
      title: make("span", { title: column.title[1], text: column.title[0] }).outerHTML, orderSequence: ["desc", "asc"],
      data: null, render: (_, kind, place) => column.value(place, kind),
    })),
    deferRender: true, pageLength: PAGE, autoWidth: false, order: SORTS[state.sort](), searching: true,
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: { paging: { buttons: 5, firstLast: false } } },
    language: { emptyTable: "No rollouts were recorded.", zeroRecords: "No rollout passes these filters.", paginate: { previous: "‹", next: "›" } },
    createdRow: (row, place) => {
      row.dataset.place = place;
      row.tabIndex = -1;
      row.setAttribute("aria-selected", "false");
    },
    drawCallback: () => markOpened(),
  });
  byId("rollouts").setAttribute("role", "grid");
  byId("rollouts").querySelector("tbody").addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-place]");
    if (row) open(Number(row.dataset.place), { focus: true });
  });
  table.on("order", () => {
    const [[column, way]] = table.order().length ? table.order() : [[COLUMN.step, "desc"]];
    const name = Object.keys(SORTS).find((key) => String(SORTS[key]()[0]) === `${column},${way}`);
    if (name) keep({ sort: name });
    byId("f-sort").value = name ?? "";
  });
}

/** Places of the rollouts that pass the filters, in the order of the list. */
const shownPlaces = () => table.rows({ search: "applied", order: "applied" }).data().toArray();

function applyFilter() {
  const passes = makeFilter();
  table.search.fixed("filters", (_, place) => passes(place));
  table.order(SORTS[state.sort]());
  table.draw();
  sayShown();
}

function sayShown() {
  const shown = table.rows({ search: "applied" }).count();
  const without = table.rows({ search: "applied" }).data().toArray().filter((place) => rollouts.why[place] !== "").length;
  byId("shown-count").textContent = `${shown.toLocaleString("en")} of ${count(total, "rollout")}`;
  const notes = [];
  if (without) notes.push(`${without.toLocaleString("en")} without token values`);
  if (data.recorded > total) notes.push(`${data.recorded.toLocaleString("en")} recorded; the page holds an even choice (--max-rollouts)`);
  byId("shown-note").textContent = notes.join(" · ");
}

function markOpened() {
  const body = byId("rollouts").querySelector("tbody");
  const rows = [...body.querySelectorAll("tr[data-place]")];
  let entry = null;
  for (const row of rows) {
    const on = Number(row.dataset.place) === opened.place;
    row.setAttribute("aria-selected", String(on));
    row.tabIndex = -1;
    if (on) entry = row;
  }
  if (entry ?? rows[0]) (entry ?? rows[0]).tabIndex = 0;
  return entry;
}

/** Turn to the page with the opened rollout and bring its row into sight. */
function revealOpened(focus) {
  const at = shownPlaces().indexOf(opened.place);
  if (at < 0) return void markOpened();
  const page = Math.floor(at / PAGE);
  if (table.page() !== page) table.page(page).draw("page");
  const row = markOpened();
  const box = byId("table-box");
  const [top, bottom] = [row.offsetTop, row.offsetTop + row.offsetHeight];
  const head = byId("rollouts").tHead.offsetHeight;
  if (top - head < box.scrollTop) box.scrollTop = top - head;
  else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
  if (focus) row.focus({ preventScroll: true });
}
