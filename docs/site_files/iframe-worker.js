// Browsers start no worker in a page that was opened from a folder. The worker of the search then
// runs in a hidden frame of the page. The plugin "offline" finds this file by its name.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.document.createElement("script");
      script.src = new URL(url, location);
      this.loaded = new Promise((resolve) => script.addEventListener("load", resolve));
      this.inside = inside;
      this.frame = frame;
      inside.document.body.append(script);
    }

    postMessage(data) {
      const event = () => new this.inside.MessageEvent("message", { data });
      this.loaded.then(() => this.inside.dispatchEvent(event()));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
