"""The bus without asyncio: handlers are plain functions, run in threads, and may block.

Publishes a few images to be resized, handles them, and ends.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from quantum_bus import carry_context, setup_json_logging
from quantum_bus.sync import EventBus

IMAGES = ("cat.png", "dog.png", "owl.png", "yak.png")
WIDTHS = (320, 640)

log = setup_json_logging("resizer")
bus = EventBus(service="resizer")  # the URL comes from QUANTUM_BUS_URL
pool = ThreadPoolExecutor(max_workers=4)
left = set(IMAGES)
lock = threading.Lock()


def resize(image: str, width: int) -> None:
    """Stands for work that blocks. It runs in a thread of the pool, and its line is still the flow's."""
    time.sleep(0.01)
    log.info("%s is %d wide", image, width, event="IMAGE_RESIZED", image=image, width=width)


@bus.subscriber("images", concurrency=4)
def handle(payload: dict) -> None:
    """Up to four at once. A plain pool knows nothing of flows: carry_context takes this one along."""
    image = payload["image"]
    for done in [pool.submit(carry_context(resize), image, width) for width in WIDTHS]:
        done.result()  # an error there is an error here, and the message is tried again
    log.info("%s is done", image, event="IMAGE_DONE", image=image)
    bus.publish("thumbnails", {"image": image, "widths": WIDTHS}, event="IMAGE_DONE")
    with lock:
        left.discard(image)
        if not left:
            bus.request_stop()


if __name__ == "__main__":
    for name in IMAGES:
        bus.publish("images", {"image": name}, event="IMAGE_UPLOADED", correlation_id=f"upload-{name}")
    bus.run()  # until the last one is done, or Ctrl-C
    pool.shutdown()
