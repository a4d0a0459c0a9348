// While `sdpo report --watch` follows a run: load the page again when it was made anew, and come back to where one was.

const PLACE = "sdpo-place";
const LOADED = "sdpo-loaded";
const SCROLLED = ["table-box", "detail"];

function rememberPlace() {
  const active = document.activeElement;
  sessionStorage.setItem(PLACE, JSON.stringify({
    top: scrollY, boxes: SCROLLED.map((id) => byId(id).scrollTop), focus: active?.id || null,
    row: Boolean(active?.closest?.("tr[data-place]")), token: Boolean(active?.classList?.contains("token")),
  }));
}

function restorePlace() {
  const text = sessionStorage.getItem(PLACE);
  if (!text) return;
  sessionStorage.removeItem(PLACE);
  const kept = JSON.parse(text);
  scrollTo({ top: kept.top, behavior: "instant" });
  SCROLLED.forEach((id, at) => { byId(id).scrollTop = kept.boxes[at]; });
  if (kept.row) markOpened()?.focus({ preventScroll: true });
  else if (kept.token) detailView.focusToken?.();
  else if (kept.focus) byId(kept.focus)?.focus({ preventScroll: true });
}

function startFollowing() {
  if (!data.stampFile) return;
  byId("following").hidden = false;
  let typed = 0;
  document.addEventListener("input", () => { typed = Date.now(); });
  const reload = () => {
    rememberPlace();
    sessionStorage.setItem(LOADED, data.stamp);
    location.reload();
  };
  const ask = () => {
    // Not in the middle of a word.
    if (Date.now() - typed < 1500) return;
    const script = make("script", { src: `${encodeURIComponent(data.stampFile)}?${Date.now()}` });
    script.addEventListener("load", () => script.remove());
    script.addEventListener("error", () => {
      // Following has ended, and the last page stands here; unless this very page was loaded for that reason.
      script.remove();
      clearInterval(timer);
      if (sessionStorage.getItem(LOADED) !== data.stamp) reload();
      else byId("following").textContent = "no longer followed";
    });
    document.head.append(script);
  };
  globalThis.sdpoStamp = (stamp) => { if (stamp !== data.stamp) reload(); };
  const timer = setInterval(ask, 1000 * data.askedEvery);
}
