// Elements are made from text nodes only: what a model wrote is never parsed as HTML.

const byId = (id) => document.getElementById(id);

/** Make an element; a property that starts with "on" is a listener, null and false leave an attribute out. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Return the bytes behind the base64 text of a script element, unzipped, as text. */
async function unpack(id) {
  const holder = byId(id);
  const binary = atob(holder.textContent);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at++) bytes[at] = binary.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

/** Call a function once, however often the result is asked for. */
function once(call) {
  let result;
  return () => (result ??= call());
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (value !== 0 && (size < 10 ** -digits || size >= 1e6)) return value.toExponential(2);
  return value.toLocaleString("en", { maximumFractionDigits: size >= 100 ? 1 : digits });
}

function signed(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : (value > 0 ? "+" : "−") + text;
}

/** Probability from −1000 × nats. */
function percent(milli) {
  if (milli === null || milli === undefined) return "–";
  const share = 100 * Math.exp(-milli / 1000);
  if (share > 0 && share < 0.01) return "< 0.01 %";
  return `${share.toFixed(share < 1 ? 2 : 1)} %`;
}

function count(total, one, many = `${one}s`) {
  return `${total.toLocaleString("en")} ${total === 1 ? one : many}`;
}

/** White space made visible. */
function visible(text) {
  return text.replace(/\r/g, "␍").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "·");
}

const data = JSON.parse(byId("data").textContent);
const rollouts = data.rollouts;
const total = rollouts.id.length;
const severalRuns = data.names.length > 1;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const loadChunk = (() => {
  const loaded = new Map();
  return (chunk) => {
    if (!loaded.has(chunk)) loaded.set(chunk, unpack(`chunk-${chunk}`).then(JSON.parse));
    return loaded.get(chunk);
  };
})();

/** Return all that is known of a rollout, by its place in the list. */
async function loadDetail(place) {
  return (await loadChunk(Math.floor(place / data.chunk)))[place % data.chunk];
}

const loadTexts = once(() => unpack("texts").then(JSON.parse));
const loadOthers = once(() => unpack("others").then(JSON.parse));

const loadCharts = once(async () => {
  const code = make("script", { text: await unpack("library-charts") });
  document.head.append(code);
  code.remove();
  Bokeh.set_log_level("error");
});

const loadTable = once(async () => {
  const address = URL.createObjectURL(new Blob([await unpack("library-table")], { type: "text/javascript" }));
  const module = await import(address);
  URL.revokeObjectURL(address);
  return module.default;
});

/** Text in which `names` stand in back quotes, as nodes. */
function quoted(text) {
  return text.split("`").map((part, at) => (at % 2 ? make("code", { text: part }) : part));
}
