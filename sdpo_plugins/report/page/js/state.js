// What the page shows stands in its address, so that a reload and a bookmark keep it.

const STANDARD = {
  view: "overview", theme: "auto", smooth: "0", hidden: "", drawn: "", metric: "",
  text: "", run: "", success: "", active: "", feedback: "", demonstration: "",
  rewardMin: "", rewardMax: "", stepMin: "", stepMax: "", sort: "newest",
  open: "", token: "", range: "2",
};

const state = { ...STANDARD };

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(STANDARD)) state[name] = given.get(name) ?? STANDARD[name];
}

function writeAddress() {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) if (value !== STANDARD[name]) given.set(name, value);
  const text = given.toString();
  history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

function keep(changes) {
  Object.assign(state, changes);
  writeAddress();
}

const list = (text) => (text ? text.split("\n") : []);

function toggled(text, item) {
  const items = list(text);
  return (items.includes(item) ? items.filter((other) => other !== item) : [...items, item]).join("\n");
}

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themeListeners = [];

function isDark() {
  return state.theme === "dark" || (state.theme === "auto" && systemDark.matches);
}

function applyTheme() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  byId("theme").value = state.theme;
  for (const listener of themeListeners) listener();
}

function setTheme(theme) {
  keep({ theme });
  applyTheme();
}

function showView(view) {
  keep({ view });
  for (const tab of document.querySelectorAll("[data-view]")) {
    const on = tab.dataset.view === view;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
    byId(`view-${tab.dataset.view}`).hidden = !on;
  }
  document.body.dataset.view = view;
}
