// Pointer input on the stage: strokes by mouse, pen and finger, panning and zooming.

import { cut } from "./mask.js";

export class Painter {
  /**
   * state(): returns { tool, size, frozen }: the tool, the brush's diameter in screen px, and whether painting is disabled.
   * onPaint(step): receives { box, before, after }, the mask's pixels in a box before and after a stroke.
   */
  constructor(view, state, onPaint) {
    this.view = view;
    this.stage = view.stage;
    this.state = state;
    this.onPaint = onPaint;
    this.pointers = new Map(); // pressed pointers by id: [x, y] on the screen
    this.stroke = null;
    this.space = false;
    this.cursor = this.stage.querySelector("#cursor");
    this.band = this.stage.querySelector("#band path");
    const on = (name, handler) => this.stage.addEventListener(name, handler);
    on("pointerdown", (event) => this.#down(event));
    on("pointermove", (event) => this.#moved(event));
    on("pointerup", (event) => this.#up(event));
    on("pointercancel", (event) => this.#up(event, true));
    on("pointerleave", () => this.#showCursor(null));
    on("contextmenu", (event) => event.preventDefault());
    this.stage.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
  }

  /** Cancel the current stroke and restore the mask. */
  abandon() {
    if (!this.stroke) return;
    this.view.mask.holes.set(this.stroke.before);
    this.#end();
    this.view.drawVeil();
  }

  #down(event) {
    const { view } = this;
    if (!view.current || event.target.closest("button, #split")) return;
    this.stage.focus({ preventScroll: true, focusVisible: false });
    try {
      this.stage.setPointerCapture(event.pointerId);
    } catch {
      // The pointer is already gone, or a script created it.
    }
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.pointers.size > 1) {
      this.abandon(); // the first finger began a pinch, not a stroke
      return;
    }
    const { tool, frozen } = this.state();
    if (view.compare === "slider" && event.button === 0 && !this.space) this.#split(event);
    else if (this.space || event.button === 1 || tool === "hand" || view.compare !== "off") this.stage.classList.add("moving");
    else if (event.button === 0 && !frozen) this.#begin(tool, view.place(event));
    event.preventDefault();
  }

  #begin(tool, place) {
    this.stroke = { tool, places: [place], before: this.view.mask.holes.slice(), box: null };
    if (tool === "brush" || tool === "eraser") this.#paintTo(place);
  }

  #moved(event) {
    this.#showCursor(event);
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.pointers.size === 2) this.#pinch(event, last);
    else if (this.splitting) this.#split(event);
    else if (this.stage.classList.contains("moving")) this.view.move(event.clientX - last[0], event.clientY - last[1]);
    else if (this.stroke) this.#follow(event);
  }

  #follow(event) {
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) {
      const place = this.view.place(each);
      const { tool, places } = this.stroke;
      if (tool === "brush" || tool === "eraser") this.#paintTo(place);
      else if (tool === "rectangle") places[1] = place;
      else places.push(place);
    }
    if (this.stroke.tool === "rectangle" || this.stroke.tool === "lasso") this.#drawBand();
  }

  #paintTo(place) {
    const { mask, zoom } = this.view;
    const { stroke } = this;
    const radius = this.state().size / 2 / zoom;
    const box = mask.line(stroke.places.at(-1), place, radius, stroke.tool === "brush" ? 1 : 0);
    stroke.places.push(place);
    stroke.box = union(stroke.box, box);
    this.view.drawVeil(box);
  }

  #up(event, cancelled = false) {
    if (!this.pointers.delete(event.pointerId) || this.pointers.size) return;
    this.stage.classList.remove("moving");
    this.splitting = false;
    if (!this.stroke) return;
    if (cancelled) {
      this.abandon();
      return;
    }
    const { tool, places, before } = this.stroke;
    const { mask } = this.view;
    let { box } = this.stroke;
    if (tool === "rectangle" && places.length > 1) box = mask.polygon(corners(places), 1);
    if (tool === "lasso" && places.length > 2) box = mask.polygon(places, 1);
    this.#end();
    if (box && box.left < box.right && box.top < box.bottom) {
      this.onPaint({ box, before: cut(before, mask.width, box), after: cut(mask.holes, mask.width, box) });
    }
    this.view.drawVeil();
  }

  #end() {
    this.stroke = null;
    this.band.setAttribute("d", "");
  }

  #drawBand() {
    const { x, y, zoom } = this.view;
    const { tool, places } = this.stroke;
    const points = tool === "rectangle" ? corners(places) : places;
    this.band.setAttribute("d", `M${points.map(([px, py]) => `${px * zoom + x} ${py * zoom + y}`).join("L")}Z`);
  }

  /** Handle two fingers: their midpoint pans the picture, their distance zooms it. */
  #pinch(event, last) {
    const { left, top } = this.stage.getBoundingClientRect();
    const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
    const middle = (point) => [(point[0] + other[0]) / 2 - left, (point[1] + other[1]) / 2 - top];
    const distance = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
    const now = [event.clientX, event.clientY];
    const [from, to] = [middle(last), middle(now)];
    this.view.move(to[0] - from[0], to[1] - from[1]);
    this.view.zoomTo((this.view.zoom * distance(now)) / distance(last), ...to);
  }

  #split(event) {
    this.splitting = true;
    const { left, width } = this.stage.getBoundingClientRect();
    this.view.split = Math.min(Math.max((event.clientX - left) / width, 0), 1);
    this.stage.querySelector("#split input").value = this.view.split;
    this.view.draw();
  }

  #wheel(event) {
    if (!this.view.current) return;
    event.preventDefault();
    const { left, top } = this.stage.getBoundingClientRect();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    const factor = Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0015)); // ctrlKey: a pinch on a touchpad
    this.view.zoomTo(this.view.zoom * factor, event.clientX - left, event.clientY - top);
  }

  /** Draw a ring of the brush's size at the mouse or pen. */
  #showCursor(event) {
    const { tool, size, frozen } = this.state();
    const shown =
      event && event.pointerType !== "touch" && this.view.current && this.view.compare === "off" && !frozen &&
      (tool === "brush" || tool === "eraser") && event.target === this.stage;
    this.cursor.style.display = shown ? "block" : "none";
    if (!shown) return;
    const { left, top } = this.stage.getBoundingClientRect();
    this.cursor.style.width = this.cursor.style.height = `${size}px`;
    this.cursor.style.transform = `translate(${event.clientX - left - size / 2}px, ${event.clientY - top - size / 2}px)`;
  }
}

function corners([[ax, ay], [bx, by] = [ax, ay]]) {
  return [[ax, ay], [bx, ay], [bx, by], [ax, by]];
}

function union(a, b) {
  if (!a) return b;
  return {
    left: Math.min(a.left, b.left),
    top: Math.min(a.top, b.top),
    right: Math.max(a.right, b.right),
    bottom: Math.max(a.bottom, b.bottom),
  };
}
