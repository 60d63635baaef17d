// One worker, one image at a time: the page asks for images by place, and a later wish for a place replaces an earlier.

export class Painter {
  /** `on` has progress({loaded, total}), ready() and failed(message). */
  constructor(on) {
    this.waiting = new Map(); // place -> {urgency, request, done}, in order of arrival
    this.busy = null;
    this.ready = false;
    this.count = 0;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onerror = (event) => on.failed(event.message || "the worker could not be started");
    this.worker.onmessage = ({ data }) => {
      if (data.failed !== undefined) on.failed(data.failed);
      else if (data.ready) {
        this.ready = true;
        on.ready();
        this.#next();
      } else if (data.id === undefined) on.progress(data);
      else {
        const { done } = this.busy;
        this.busy = null;
        done(data);
        this.#next();
      }
    };
  }

  /** Ask for an image; `done` gets {size, bytes, cut, milliseconds}. The most urgent (the largest number) is next. */
  want(place, urgency, request, done) {
    this.waiting.delete(place);
    this.waiting.set(place, { urgency, request, done });
    this.#next();
  }

  forget(place) {
    this.waiting.delete(place);
  }

  #next() {
    if (!this.ready || this.busy || !this.waiting.size) return;
    const [place, job] = [...this.waiting].reduce((a, b) => (b[1].urgency > a[1].urgency ? b : a));
    this.waiting.delete(place);
    this.busy = job;
    this.worker.postMessage({ id: ++this.count, ...job.request });
  }
}

const SHOWN = 512; // pixels: canvases enlarge small images more smoothly than style sheets do

/** Show an image on a canvas, under a description for those who do not see it; the image as it is: `canvas.image`. */
export function paint(canvas, { size, bytes }, description) {
  canvas.image ??= document.createElement("canvas");
  canvas.image.width = canvas.image.height = size;
  canvas.image.getContext("2d").putImageData(new ImageData(bytes, size, size), 0, 0);
  canvas.width = canvas.height = Math.max(SHOWN, size);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas.image, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", description);
}
