/** Open a rollout of the list. */
async function openRollout(place, { focus = false, reveal = focus, token = "" } = {}) {
  opened.place = place;
  keep({ open: place === null ? "" : `${data.names[rollouts.run[place]]}:${rollouts.id[place]}`, token });
  if (reveal) revealOpened(focus);
  else markOpened();
  if (!token) byId("detail").scrollTop = 0;
  await showDetail(place, openRollout);
}

const placeOf = (name) => {
  const at = name.lastIndexOf(":");
  const [run, id] = [data.names.indexOf(name.slice(0, at)), Number(name.slice(at + 1))];
  const place = rollouts.id.findIndex((other, each) => other === id && rollouts.run[each] === run);
  return place < 0 ? null : place;
};

function move(by) {
  const places = shownPlaces();
  if (!places.length) return;
  const at = places.indexOf(opened.place);
  const next = at < 0 ? (by > 0 ? 0 : places.length - 1) : Math.min(Math.max(at + by, 0), places.length - 1);
  const inTokens = document.activeElement?.classList.contains("token");
  openRollout(places[next], { focus: !inTokens, reveal: true });
}

async function start() {
  readAddress();
  applyTheme();
  showView(state.view in { overview: 1, rollouts: 1 } ? state.view : "overview");
  byId("tab-count").textContent = total.toLocaleString("en");
  for (const tab of document.querySelectorAll("[data-view]")) tab.addEventListener("click", () => showView(tab.dataset.view));
  // The address holds the state, so the link may not change it.
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); byId("main").focus(); });
  byId("theme").addEventListener("change", (event) => setTheme(event.target.value));
  systemDark.addEventListener("change", () => state.theme === "auto" && applyTheme());
  startCharts();
  if (!(state.sort in SORTS)) keep({ sort: STANDARD.sort });
  if (!RANGES.includes(state.range)) keep({ range: STANDARD.range });
  const kept = { open: state.open, token: state.token };
  await startTable(openRollout);
  const filters = startFilters(applyFilter);
  await filters.apply();
  startKeys({ move, clear: () => byId("f-reset").click() });
  const first = kept.open ? placeOf(kept.open) : shownPlaces().find((place) => rollouts.why[place] === "") ?? shownPlaces()[0];
  await openRollout(first ?? null, { reveal: first !== undefined && first !== null, token: kept.open ? kept.token : "" });
  // Somebody may write an address by hand, or go to a bookmark of this page.
  addEventListener("hashchange", () => location.reload());
  restorePlace();
  startFollowing();
  document.documentElement.dataset.ready = "1";
}

start();
