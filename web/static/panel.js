// Keeps a page live, and its actions on it. Without this file everything works all the same, a page at a time.
//
// One EventSource sends the pieces of the page that are newer than those shown, each with an id. They are collected,
// and the latest of each is put in place once a frame. A piece is changed into its new form rather than replaced:
// elements that stay the same are not touched, so focus, selection, scrolling and opened details stay.
"use strict";

const body = document.body;
const byId = (id) => document.getElementById(id);

// --- Failed requests: a line says what could not be fetched, until it can be

const faults = new Map();

function fault(what, words) {
  if (words) faults.set(what, words);
  else if (!faults.delete(what)) return;
  const shown = byId("faults");
  shown.textContent = [...faults.values()].join(" ");
  shown.hidden = !faults.size;
}

// Fetch `address`. If that fails, show `words` with the reason, and throw; `what` names the fault until it is over.
async function get(what, words, address, options) {
  try {
    const answer = await fetch(address, options);
    if (!answer.ok) throw new Error(`the server says ${answer.status}`);
    fault(what, "");
    return answer;
  } catch (error) {
    fault(what, `${words}: ${error instanceof TypeError ? "the server does not answer" : error.message}.`);
    throw error;
  }
}

const ignore = () => {}; // `get` has shown the fault

// --- Changing elements into others

// Let `old` become like `fresh`, an element of the same kind.
function become(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !keeps(old, name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value && !keeps(old, name)) old.setAttribute(name, value);
  }
  if (old.localName === "input" && old !== document.activeElement && old.value === old.dataset.was) {
    old.value = fresh.value;
  }
  if (old.localName === "input") old.dataset.was = fresh.value;
  becomeChildren(old, [...fresh.childNodes]);
}

// What people have opened stays open.
const keeps = (element, name) =>
  (element.localName === "details" && name === "open") || name === "data-was" || (name === "tabindex" && element.localName === "a") ||
  (["width", "height", "data-zoom"].includes(name) && element.dataset?.zoom && element.matches("svg.graph")) || (name === "class" && element.matches(".changed"));

function becomeChildren(parent, wanted) {
  let at = parent.firstChild;
  for (const next of wanted) {
    const named = next.id && [...parent.children].find((each) => each.id === next.id);
    const match = named || (at && !at.id && alike(at, next) ? at : null);
    if (!match) {
      parent.insertBefore(next, at);
      continue;
    }
    if (match !== at) parent.insertBefore(match, at);
    else at = at.nextSibling;
    if (match.nodeType === Node.ELEMENT_NODE) become(match, next);
    else if (match.data !== next.data) match.data = next.data;
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

const alike = (one, other) => one.nodeType === other.nodeType && one.nodeName === other.nodeName && !other.id;

// Return the element of `html` that is to replace `old`, which may be within an SVG picture.
function parse(html, old) {
  const template = document.createElement("template");
  const within = old instanceof SVGElement && old.ownerSVGElement;
  template.innerHTML = within ? `<svg>${html}</svg>` : html.trim();
  const made = template.content.firstElementChild;
  return within ? made.firstElementChild : made;
}

// --- Pieces that have arrived and are not in place yet

const news = { pieces: new Map(), lists: new Map(), glow: new Set() };
let planned = 0;

function take(message, glows) {
  const { title, pieces, lists, stale: heavy = [] } = JSON.parse(message);
  for (const id of heavy) stale.add(id);
  document.title = title;
  for (const [id, html] of Object.entries(pieces)) {
    news.pieces.delete(id); // what came last is put last: a row, or what is within it
    news.pieces.set(id, html);
    if (glows) news.glow.add(id);
  }
  for (const [id, items] of Object.entries(lists)) news.lists.set(id, items);
  // A hidden page gets no frames, and has nobody to wait for.
  if (!planned) planned = document.hidden ? setTimeout(put) : requestAnimationFrame(put);
}

// Large pictures that have changed are fetched while they are in sight, every few seconds at most.
const stale = new Set();
const FETCH_AFTER = 5000; // milliseconds
let fetchedAt = 0;

async function fetchStale() {
  if (document.hidden || !connection.live || Date.now() - fetchedAt < FETCH_AFTER) return;
  const visible = [...stale].find((id) => {
    const { top, bottom } = byId(id)?.getBoundingClientRect() ?? { top: 1, bottom: 0 };
    return bottom > 0 && top < innerHeight;
  });
  if (!visible) return;
  fetchedAt = Date.now();
  const address = new URL(location.href);
  address.searchParams.set("piece", visible);
  const answer = await get(visible, `The ${visible} is older than the rest of the page`, address);
  stale.delete(visible);
  become(byId(visible), parse(await answer.text()));
  zoom(byId(visible), 1);
  rove();
}

function put() {
  planned = 0;
  const fresh = new DocumentFragment();
  for (const [id, html] of news.pieces) {
    const old = byId(id) ?? fresh.getElementById(id);
    const now = parse(html, old);
    // Only another state glows, not an expectation that has moved.
    if (old && old.dataset.state === now.dataset.state) news.glow.delete(id);
    if (!old) fresh.append(now);
    else if (old.localName !== now.localName) old.replaceWith(now);
    else become(old, now);
  }
  for (const [id, items] of news.lists) arrange(byId(id), items, fresh);
  for (const id of news.glow) glow(byId(id));
  rove();
  if (news.pieces.has("attempts")) followLatest().catch(ignore);
  news.pieces.clear();
  news.lists.clear();
  news.glow.clear();
  tick();
}

function arrange(list, items, fresh) {
  const wanted = items.map((id) => byId(id) ?? fresh.getElementById(id)).filter(Boolean);
  const stay = new Set(wanted);
  for (const each of [...list.children]) if (!stay.has(each)) each.remove();
  let at = list.firstElementChild;
  for (const each of wanted) {
    if (each === at) at = at.nextElementSibling;
    else list.insertBefore(each, at);
  }
}

function glow(element) {
  if (!element || !element.matches("li, tr, article, .slot")) return;
  element.classList.remove("changed");
  void element.offsetWidth; // begins the animation anew
  element.classList.add("changed");
}

document.addEventListener("animationend", (event) => event.target.classList.remove("changed"));

// --- Durations are counted on

const clock = { ahead: 0 }; // how far the server's clock is ahead of ours, in milliseconds
if (body.dataset.now) clock.ahead = Number(body.dataset.now) - Date.now();

// In the same words as `lasting` of pgcoord/http/panel/format.py.
function lasting(seconds) {
  seconds = Math.max(0, Math.floor(seconds));
  if (seconds < 60) return `${seconds} s`;
  let minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  let hours = Math.floor(minutes / 60);
  minutes %= 60;
  if (hours < 24) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
  const days = Math.floor(hours / 24);
  hours %= 24;
  return hours ? `${days} d ${hours} h` : `${days} d`;
}

function tick() {
  if (!connection.live) return; // what is not live does not go on
  const now = Date.now() + clock.ahead;
  for (const time of document.querySelectorAll("time[data-since], time[data-ago]")) {
    const passed = (now - Date.parse(time.dateTime)) / 1000;
    const words = time.dataset.ago === undefined ? lasting(passed) : passed < 0 ? `in ${lasting(-passed)}` : `${lasting(passed)} ago`;
    if (time.textContent !== words) time.textContent = words;
  }
}

// Times are in the zone of the browser, unless another one was chosen (pgcoord_zone without a tilde).
function keepZone() {
  const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const chosen = /(?:^|; )pgcoord_zone=([^;]*)/.exec(document.cookie)?.[1];
  if (!own || (chosen && (!chosen.startsWith("~") || chosen === `~${own}`))) return;
  document.cookie = `pgcoord_zone=~${own}; path=${document.querySelector(".brand").pathname}; max-age=31536000; samesite=strict`;
  if (body.dataset.zone !== own && document.cookie.includes(`pgcoord_zone=~${own}`)) location.reload();
}

// After a while away, the page shows what happened meanwhile.
const AWAY = 300000; // milliseconds
let leftAt = 0;

async function comeBack() {
  if (document.hidden) leftAt = Date.now();
  else if (leftAt && Date.now() - leftAt > AWAY && byId("since")) {
    const answer = await get("since", "What happened meanwhile cannot be told", location.href);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("since");
    if (fresh) byId("since").replaceWith(document.adoptNode(fresh));
  }
}

// --- The connection, and the age of what is shown

const connection = { live: false, wakes: false, asOf: clock.ahead + Date.now(), reason: "", heardAt: Date.now(), wait: 0, next: 0, source: null, timer: 0 };
const LEAVING = 3000; // milliseconds after which a page that is still there connects again
const SILENCE = 10000; // milliseconds after which a connection is taken as dead: it beats every four seconds

// A browser has six connections to a server, for all its tabs, and each stream takes one. So a hidden tab
// closes its own after a while, and asks now and then for its title and icon.
const REST = { after: 30000, every: 60000, hears: 5000 }; // milliseconds
let resting = 0;

function rest(after) {
  clearTimeout(resting);
  if (!document.hidden) return;
  resting = setTimeout(() => {
    if (!connection.live) return rest(REST.after); // what is lost goes on trying
    clearTimeout(connection.timer);
    connection.source.close();
    tellOthers(false);
    resting = setTimeout(() => {
      connect();
      rest(REST.hears);
    }, REST.every);
  }, after);
}

// Of the visible windows, those used last keep their streams; the others share what is left, and each asks every few
// seconds. The windows announce themselves to each other, over all paths of the server.
const TURN = { streams: 4, hears: 500, every: 2500, silence: 3000 }; // milliseconds
const shared = !/^h[23]/.test(performance.getEntriesByType("navigation")[0]?.nextHopProtocol); // one connection carries all
const others = new Map();
const here = { id: Math.random(), at: Date.now() };
const channel = new BroadcastChannel("pgcoord");
channel.addEventListener("message", ({ data }) => others.set(data.id, { ...data, heardAt: Date.now() }));

function tellOthers(streams) {
  channel.postMessage({ ...here, streams });
}

function takeTurns() {
  if (!shared) return;
  for (const [id, { heardAt, streams }] of others) if (!streams || Date.now() - heardAt > TURN.silence) others.delete(id);
  const before = [...others.values()].filter(({ at, id }) => at > here.at || (at === here.at && id > here.id));
  if (before.length < TURN.streams || connection.source.readyState !== EventSource.OPEN) return;
  clearTimeout(connection.timer);
  connection.timer = setTimeout(() => {
    connection.source.close();
    connection.timer = setTimeout(connect, TURN.every);
  }, TURN.hears);
}

// This window is being used now.
function enter() {
  here.at = Date.now();
  if (connection.live && connection.source.readyState === EventSource.CLOSED) connect();
}

function wake() {
  clearTimeout(resting);
  if (!connection.live || connection.source.readyState !== EventSource.CLOSED) return;
  connection.wakes = true;
  connect();
  showConnection();
}

const twoDigits = (number) => String(number).padStart(2, "0");

// In the zone of the page: that of the server, as all its times.
function clockTime(milliseconds) {
  const offset = /([+-])(\d\d):(\d\d)$/.exec(byId("live").querySelector("time").dateTime);
  const minutes = offset ? (offset[1] === "-" ? -1 : 1) * (Number(offset[2]) * 60 + Number(offset[3])) : 0;
  const at = new Date(milliseconds + minutes * 60000);
  return [at.getUTCHours(), at.getUTCMinutes(), at.getUTCSeconds()].map(twoDigits).join(":");
}

function showConnection() {
  const { live, asOf, reason } = connection;
  const shown = byId("live");
  const words = live && !connection.wakes ? "Live" : "Reconnecting";
  const status = shown.querySelector("strong");
  if (status.textContent !== words) status.textContent = words;
  shown.classList.toggle("lost", !live);
  shown.querySelector("use").setAttribute("href", live ? "#i-live" : "#i-lost");
  shown.querySelector("time").textContent = clockTime(asOf);
  showIcon();
  byId("main").classList.toggle("stale", !live);
  byId("lost").hidden = live;
  if (!live) {
    const age = lasting((Date.now() + clock.ahead - asOf) / 1000);
    byId("lost").querySelector(".words").textContent =
      `${reason || "The server does not answer"}. What is shown is ${age} old, as of ${clockTime(asOf)}; running phases continue without it.`;
    const wait = Math.ceil((connection.next - Date.now()) / 1000);
    byId("lost").querySelector(".next").textContent = wait > 0 ? `Next try in ${wait} s` : "Trying";
  }
}

// The icon of the tab: as usual, with items of attention (the title begins with their number), or not live.
function showIcon() {
  const icon = document.querySelector("link[rel=icon]");
  const name = !connection.live ? "lost" : document.title.startsWith("(") ? "alert" : "icon";
  const address = icon.href.replace(/[^/]*$/, `${name}.svg`);
  if (icon.href !== address) icon.href = address;
  const lost = "Not live · ";
  const title = document.title.replace(lost, "");
  const wanted = connection.live ? title : lost + title;
  if (document.title !== wanted) document.title = wanted;
}

function lose(reason) {
  connection.live = false;
  connection.wakes = false;
  connection.reason = reason;
  showConnection();
}

function connect() {
  clearTimeout(connection.timer);
  connection.source?.close();
  const address = new URL(location.href);
  address.hash = "";
  address.searchParams.set("live", body.dataset.seen);
  const log = document.querySelector("[data-log]");
  if (log && follow()?.checked) address.searchParams.set("log", log.dataset.log);
  const source = new EventSource(address);
  connection.source = source;
  connection.heardAt = Date.now();
  for (const kind of ["news", "all"]) {
    source.addEventListener(kind, (event) => {
      connection.heardAt = Date.now();
      body.dataset.seen = event.lastEventId;
      take(event.data, kind === "news");
    });
  }
  source.addEventListener("live", (event) => {
    const { live, as_of: asOf, now, reason, assets } = JSON.parse(event.data);
    if (assets !== body.dataset.assets) return location.reload();
    connection.heardAt = Date.now();
    connection.wakes = false;
    connection.wait = 0;
    clock.ahead = now - Date.now();
    connection.asOf = Date.parse(asOf);
    if (live) connection.live = true;
    else lose(`The database does not answer (${reason})`);
    showConnection();
    tick();
    takeTurns();
  });
  source.addEventListener("log", (event) => grow(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    source.close();
    lose("");
    // Sooner at first, then every few seconds; not all at the same moment.
    connection.wait = Math.min(connection.wait * 2 || 400, 4000);
    clearTimeout(connection.timer);
    const wait = connection.wait * (0.75 + Math.random() / 2);
    connection.next = Date.now() + wait;
    connection.timer = setTimeout(connect, wait);
    showConnection();
  });
}

// --- The log

const follow = () => byId("follow");
const MOST_SHOWN = 10000; // lines of a log that are kept on the page

function grow({ position, skipped, html, size, written }) {
  const log = document.querySelector("[data-log]");
  const shown = byId("log-text");
  if (!log || !shown || !follow().checked) return;
  log.dataset.log = position;
  const atEnd = shown.scrollHeight - shown.scrollTop - shown.clientHeight < 40;
  if (skipped) shown.textContent = "";
  shown.querySelector(".going")?.remove();
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  shown.append(fresh.content);
  while (shown.childNodes.length > MOST_SHOWN) shown.firstChild.remove();
  if (atEnd) shown.scrollTop = shown.scrollHeight;
  byId("log-place").textContent = `up to ${size}`;
  const age = byId("log-age");
  age.hidden = false;
  age.querySelector("time").dateTime = new Date(written * 1000).toISOString();
  age.querySelector("time").removeAttribute("title");
  tick();
}

// Show the log of an attempt that has just begun, unless somebody reads another one, or something in this one.
async function followLatest() {
  const attempts = byId("attempts");
  const shown = document.querySelector("[data-log]");
  const latest = attempts?.dataset.latest;
  if (!latest || (shown ? shown.dataset.log.split(":")[0] : byId("log").dataset.attempt) === latest) return;
  if (location.search || (follow() && !follow().checked)) return;
  const answer = await get("log", "The log of the latest attempt cannot be shown", location.pathname);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("log");
  if (!fresh) return;
  byId("log").replaceWith(document.adoptNode(fresh));
  beginLog();
  connect();
}

// A log of any size is scrolled through: parts are fetched before one reaches them, those far away are dropped.
const NEAR = 600; // pixels to the end of what is there
const MOST_PARTS = 4; // of 64 kB
let fetching = false;

const number = (line) => Number(line.id.slice(1));

async function extendLog(shown) {
  const follows = follow()?.checked;
  const { start, end, size } = shown.dataset;
  const up = shown.scrollTop < NEAR && Number(start) > 0;
  const down = !follows && shown.scrollHeight - shown.scrollTop - shown.clientHeight < NEAR && Number(end) < Number(size);
  if (fetching || !(up || down)) return;
  fetching = true;
  try {
    const from = up ? Math.max(0, Number(start) - 48000) : Number(end);
    const part = await fetchPart(shown, from);
    const fresh = [...part.lines].filter((line) => (up ? number(line) < number(shown.querySelector(".l")) : number(line) > number([...shown.querySelectorAll(".l")].at(-1))));
    const chunk = document.createElement("span");
    chunk.className = "chunk";
    chunk.dataset.start = part.start;
    chunk.dataset.end = part.end;
    chunk.append(...fresh);
    if (!shown.querySelector(".chunk")) {
      const first = chunk.cloneNode();
      [first.dataset.start, first.dataset.end] = [start, end];
      first.append(...shown.childNodes);
      shown.append(first);
    }
    const height = shown.scrollHeight;
    if (up) {
      chunk.dataset.end = shown.dataset.start;
      shown.prepend(chunk);
      shown.dataset.start = part.start;
      shown.scrollTop += shown.scrollHeight - height;
    } else {
      shown.append(chunk);
      shown.dataset.end = part.end;
    }
    const chunks = [...shown.querySelectorAll(".chunk")];
    if (chunks.length > MOST_PARTS) {
      const far = up ? chunks.at(-1) : chunks[0];
      if (up) shown.dataset.end = far.dataset.start;
      else {
        shown.dataset.start = chunks[1].dataset.start;
        shown.scrollTop -= far.offsetHeight;
      }
      far.remove();
    }
    sayPlace(shown);
  } finally {
    fetching = false;
  }
}

async function fetchPart(shown, from) {
  const answer = await get("part", "More of the log cannot be shown", `${shown.dataset.part}&at=${from}`);
  const part = await answer.json();
  const fresh = document.createElement("template");
  fresh.innerHTML = part.html;
  shown.dataset.size = part.size;
  return { ...part, lines: fresh.content.querySelectorAll(".l") };
}

function sayPlace(shown) {
  const { start, end, size } = shown.dataset;
  const [a, b, c] = [start, end, size].map((each) => (each < 1e6 ? `${Math.round(each / 1000)} kB` : `${(each / 1e6).toFixed(1)} MB`));
  byId("log-place").textContent = `${a} to ${b} of ${c}`;
  if (byId("log-at") && byId("log-at") !== document.activeElement) byId("log-at").value = start;
}

async function goToPlace(shown, from) {
  if (follow()?.checked) follow().click();
  const part = await fetchPart(shown, from);
  shown.replaceChildren(...part.lines);
  [shown.dataset.start, shown.dataset.end] = [part.start, part.end];
  shown.scrollTop = 1;
  sayPlace(shown);
}

function beginLog() {
  const shown = byId("log-text");
  if (!shown) return;
  const line = shown.dataset.line && byId(`L${shown.dataset.line}`);
  if (line) {
    line.classList.add("at");
    shown.scrollTop = line.offsetTop - shown.offsetTop - shown.clientHeight / 3;
  } else shown.scrollTop = shown.scrollHeight;
  shown.addEventListener("scroll", () => extendLog(shown).catch(ignore)); // the next move tries again
  byId("log-at")?.addEventListener("change", (event) => goToPlace(shown, Number(event.target.value)).catch(ignore));
  if (!follow()) return;
  follow().closest("label").hidden = false;
  follow().addEventListener("change", connect);
}

// --- Pictures larger than their frame are scrolled to what runs

function bring(frame, there) {
  if (!frame || !there || (frame.scrollWidth <= frame.clientWidth && frame.scrollHeight <= frame.clientHeight)) return;
  const [outer, inner] = [frame.getBoundingClientRect(), there.getBoundingClientRect()];
  frame.scrollLeft += inner.left - outer.left - frame.clientWidth * 0.6;
  if (inner.height < frame.clientHeight) frame.scrollTop += inner.top - outer.top - frame.clientHeight * 0.3;
}

function bringNow() {
  for (const id of ["graph", "timeline"]) {
    const frame = document.querySelector(`#${id} .scroll`);
    const now = frame?.querySelector(".node.running, .node.ready, .node.failed, .who .running, .who .failed");
    bring(frame, now ?? frame?.querySelector(".node:not(.completed), .who .icon:not(.completed)"));
  }
  const lanes = document.querySelector("#timeline .scroll");
  if (lanes) lanes.scrollLeft = 0;
  const now = lanes?.querySelector("line.now");
  if (now) lanes.scrollLeft = now.getBoundingClientRect().left - lanes.getBoundingClientRect().left - lanes.clientWidth * 0.8;
  const tree = document.querySelector("#tree.tall");
  bring(tree, tree?.querySelector(".icon.running, .icon.ready, .icon.failed") ?? tree?.querySelector(".icon:not(.completed)"));
}

// --- The size of the graph

function zoom(graph, by) {
  const picture = graph?.querySelector("svg.graph");
  if (!picture || (by === 1 && !picture.dataset.zoom)) return;
  const { width, height } = picture.viewBox.baseVal;
  const frame = picture.parentElement;
  const whole = Math.min(frame.clientWidth / width, Math.max(innerHeight * 0.7, 320) / height, 1);
  const now = by ? Math.min(Math.max(Number(picture.dataset.zoom || 1) * by, 0.1), 3) : whole;
  picture.dataset.zoom = now.toFixed(3);
  picture.setAttribute("width", Math.round(width * now));
  picture.setAttribute("height", Math.round(height * now));
}

const ZOOMS = { in: 1.25, out: 0.8, fit: 0 };
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-zoom]");
  if (button) zoom(byId("graph"), ZOOMS[button.dataset.zoom]);
});
document.addEventListener("change", (event) => {
  if (event.target.matches(".tabs input, #graph-wide")) bringNow();
});

// --- A list is one stop of the Tab key; arrow keys move within it

const LISTS = ["#tree h3 a", "a.node", ".timeline .who a", ".events a", ".features h3 a", ".found a", ".durations a"];

function rove() {
  for (const list of LISTS) {
    const links = [...document.querySelectorAll(list)];
    const at =
      links.find((each) => each === document.activeElement) ?? links.find((each) => each.getAttribute("tabindex") === "0") ??
      links.find((each) => each.matches(".running, .failed") || each.closest("li")?.querySelector(".icon.running, .icon.failed")) ?? links[0];
    for (const each of links) {
      const wanted = each === at ? "0" : "-1";
      if (each.getAttribute("tabindex") !== wanted) each.setAttribute("tabindex", wanted);
    }
  }
}

document.addEventListener("focusin", (event) => {
  const list = LISTS.find((each) => event.target.matches(each));
  if (!list) return;
  document.querySelector(`:is(${list})[tabindex="0"]`)?.setAttribute("tabindex", "-1");
  event.target.setAttribute("tabindex", "0");
});

// In the graph, right leads to dependents, left to prerequisites, up and down to the nodes above and below.
function beside(node, key) {
  const nodes = [...document.querySelectorAll("a.node")];
  const needs = (one, other) => one.dataset.needs.split(" ").includes(other.dataset.phase);
  if (key === "ArrowRight") return nodes.find((each) => needs(each, node));
  if (key === "ArrowLeft") return nodes.find((each) => needs(node, each));
  const place = (each) => each.parentElement;
  const column = nodes.filter((each) => place(each).x.baseVal.value === place(node).x.baseVal.value);
  column.sort((one, other) => place(one).y.baseVal.value - place(other).y.baseVal.value);
  return column[column.indexOf(node) + (key === "ArrowDown" ? 1 : -1)];
}

document.addEventListener("keydown", (event) => {
  const list = LISTS.find((each) => event.target.matches?.(each));
  if (!list || !event.key.startsWith("Arrow") || event.metaKey || event.ctrlKey || event.altKey) return;
  const links = [...document.querySelectorAll(list)];
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const next = list === "a.node" ? beside(event.target, event.key) : by && links[links.indexOf(event.target) + by];
  if (next) {
    event.preventDefault();
    next.focus();
  }
});

// --- Actions

const dialog = document.createElement("dialog");
dialog.setAttribute("aria-labelledby", "dialog-title");
body.append(dialog);

// Where all six connections are in use, an action takes that of the stream.
const WAITS = 2000; // milliseconds
const WONDERS = 200; // milliseconds after which somebody would, so what was pressed says that it is sent

async function act(address, options, pressed) {
  const waits = setTimeout(() => connection.source?.close(), WAITS);
  const wonders = setTimeout(() => pressed?.setAttribute("data-sending", ""), WONDERS);
  pressed?.setAttribute("aria-busy", "true");
  try {
    return await fetch(address, options);
  } finally {
    clearTimeout(waits);
    clearTimeout(wonders);
    for (const name of ["aria-busy", "data-sending"]) pressed?.removeAttribute(name);
    if (connection.live && connection.source.readyState === EventSource.CLOSED) connect();
  }
}

async function ask(link) {
  const answer = await act(link.href, { headers: { accept: "text/html" } }, link);
  show(await answer.text(), link.href);
}

// Show the question or the message of a page in the dialog; go to the page if it has neither.
function show(html, address) {
  const page = new DOMParser().parseFromString(html, "text/html");
  const content = page.querySelector("form.dialog, [data-problem]");
  if (!content) return location.assign(address);
  dialog.replaceChildren(document.importNode(content, true));
  if (!dialog.open) dialog.showModal();
  // The reason first: a link before it leads to another question.
  (dialog.querySelector("input:not([type=hidden])") ?? dialog.querySelector(".main, a, button"))?.focus();
}

// Show a refusal in the question that was asked, which keeps what was typed; return whether it could be.
function refuse(html, form) {
  const page = new DOMParser().parseFromString(html, "text/html").querySelector("[data-problem]");
  const problem = page?.querySelector(".problem");
  if (!problem || !dialog.contains(form)) return false;
  if (!problem.querySelector(".state")) problem.prepend(page.querySelector("h1").textContent);
  form.querySelector(".problem")?.remove();
  form.querySelector(".end").before(document.importNode(problem, true));
  return true;
}

document.addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  const link = event.target.closest("a[data-dialog]");
  if (link) {
    event.preventDefault();
    if (!link.ariaBusy) ask(link).catch(() => location.assign(link.href));
  } else if (dialog.contains(event.target) && event.target.closest("a[data-close], [data-problem] a")) {
    event.preventDefault();
    dialog.close();
  }
});

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("form[data-action]") || !body.dataset.seen) return;
  event.preventDefault();
  const button = event.submitter;
  if (button?.ariaBusy) return;
  try {
    const options = { method: "POST", body: new URLSearchParams(new FormData(form)), headers: { "x-panel": "1", accept: "text/html" } };
    const answer = await act(form.action, options, button);
    fault("action", "");
    const made = answer.headers.get("location");
    if (answer.ok && made) location.assign(made);
    else if (answer.ok) {
      if (dialog.contains(form)) dialog.close();
      for (const input of form.querySelectorAll("input")) input.dataset.was = input.value;
    } else {
      const text = await answer.text();
      if (!refuse(text, form)) show(text, form.action);
    }
  } catch {
    if (dialog.open) dialog.close();
    fault("action", "The server did not answer, so whether the last action was done is not known.");
  }
});

// --- A plan is checked as it is typed, and its rows write its text

const planForm = byId("plan-form");
const TYPED = 500; // milliseconds without a key
let typed = 0;
let checks = 0;

// The form as the server shows it for what is in it now, also with the faults of the plan.
async function fetchPlan(sent) {
  const words = "The plan is not checked";
  let page;
  try {
    const answer = await act(planForm.action, { method: "POST", body: sent, headers: { accept: "text/html" } });
    page = new DOMParser().parseFromString(await answer.text(), "text/html");
  } catch {
    fault("plan", `${words}: the server does not answer.`);
    throw new Error(words);
  }
  const problem = page.getElementById("plan-faults") ? "" : page.querySelector("main")?.textContent.trim().replace(/\s+/g, " ");
  fault("plan", problem === "" ? "" : `${words}. ${problem ?? "The server gives no reason"}`);
  if (problem !== "") throw new Error(words);
  return page;
}

async function checkPlan(then) {
  clearTimeout(typed);
  const mine = ++checks;
  const sent = new FormData(planForm);
  sent.set("then", then);
  sent.delete("file");
  const text = byId("plan").value;
  const page = await fetchPlan(sent);
  if (mine !== checks || byId("plan").value !== text) return; // something was typed meanwhile: that is checked next
  for (const id of ["plan-faults", "plan-rows"]) {
    const fresh = page.getElementById(id);
    if (fresh && (id === "plan-faults" || fresh.children.length)) become(byId(id), document.adoptNode(fresh));
  }
  for (const box of byId("plan-rows").querySelectorAll("input[type=checkbox]")) box.checked = box.hasAttribute("checked");
  const written = page.getElementById("plan")?.value;
  if (then !== "check" && written !== undefined) byId("plan").value = written;
}

if (planForm) {
  byId("plan").addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => checkPlan("check").catch(ignore), TYPED);
  });
  byId("plan-rows").addEventListener("change", () => checkPlan("rows").catch(ignore));
  planForm.addEventListener("submit", (event) => {
    if (!["check", "rows", "add"].includes(event.submitter?.value)) return;
    event.preventDefault();
    checkPlan(event.submitter.value).catch(ignore);
  });
}

// --- Lists with checkboxes

for (const button of document.querySelectorAll("button[data-tick]")) {
  button.addEventListener("click", () => {
    for (const box of button.form.querySelectorAll("input[type=checkbox]")) box.checked = button.dataset.tick === "all";
  });
}

// --- Keys

const KEYS = [
  ["/", "search"],
  ["g o", "overview"],
  ["g h", "history"],
  ["n", "new feature"],
  ["j, k", "next and previous in the list"],
  ["arrows", "within a list, and through the graph"],
  ["r", "retry, after its question"],
  ["Esc", "close"],
  ["?", "these keys"],
];
let chord = "";

function showKeys() {
  dialog.replaceChildren(parse(`<div class="dialog"><h1 id="dialog-title">Keys</h1><dl class="shortcuts">${KEYS.map(
    ([key, words]) => `<dt><kbd>${key}</kbd></dt><dd>${words}</dd>`).join("")}</dl><div class="end"><a class="button" href="" data-close>Close</a></div></div>`));
  if (!dialog.open) dialog.showModal();
  dialog.querySelector("a").focus();
}

// The links of what the page lists: features, phases, events.
function step(by) {
  const links = [...document.querySelectorAll(".attention h3 > a, .features h3 a, .tree h3 > a, .events a, .found a")].filter((each) => each.offsetParent);
  const at = links.indexOf(document.activeElement);
  links[at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(Math.max(at + by, 0), links.length - 1)]?.focus();
}

const actsOn = (key) => ({
  "/": () => document.querySelector("input[type=search]")?.focus(),
  "?": showKeys,
  j: () => step(1),
  k: () => step(-1),
  n: () => document.querySelector(".top .actions a:last-child").click(),
  r: () => (document.activeElement.closest("li") ?? document).querySelector("a[href$='/retry']")?.click(),
  "g o": () => document.querySelector(".top nav a:first-child").click(),
  "g h": () => document.querySelector(".top nav a:last-child").click(),
})[key];

document.addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey || dialog.open || event.target.matches("input, textarea, select")) return;
  const act = actsOn(chord + event.key);
  chord = event.key === "g" ? "g " : "";
  if (!act) return;
  event.preventDefault();
  act();
});

// --- Start

body.dataset.scripted = "";
rove();
if (body.dataset.seen) {
  for (const input of document.querySelectorAll("input")) input.dataset.was = input.value;
  keepZone();
  beginLog();
  bringNow();
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) rest(REST.after);
    else wake();
    comeBack().catch(ignore);
  });
  byId("lost").querySelector("button").addEventListener("click", connect);
  tellOthers(true);
  connect();
  setInterval(() => {
    if (Date.now() - connection.heardAt > SILENCE && connection.source.readyState !== EventSource.CLOSED) {
      lose("");
      connect();
    }
    if (!document.hidden || connection.source.readyState !== EventSource.CLOSED) tellOthers(true);
    takeTurns();
    showConnection();
    tick();
    fetchStale().catch(ignore); // tried again after FETCH_AFTER
  }, 1000);
  // The next page may need the connection of this one; what is only downloaded leaves it here.
  addEventListener("beforeunload", () => {
    connection.source.close();
    clearTimeout(connection.timer);
    connection.timer = setTimeout(connect, LEAVING);
  });
  addEventListener("focus", enter);
  addEventListener("pagehide", () => {
    connection.source.close();
    tellOthers(false);
  });
  addEventListener("pageshow", (event) => event.persisted && connect());
}
