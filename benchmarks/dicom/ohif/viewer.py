"""OHIF in a headless Chromium: opens a study, shows its segmentation, and takes pictures of slices."""

import base64
import io
import time
from contextlib import contextmanager

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
# Software rendering: WebGL without a graphics card.
FLAGS = ("--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
SECONDS = 90

_STUDY_IS_SHOWN = """
const services = window.services;
if (!services || !document.querySelector('.cornerstone-canvas')) return false;
const kinds = services.displaySetService.getActiveDisplaySets().map(one => one.Modality);
return kinds.includes('SEG') && kinds.length > 1;
"""
_VIEWPORT = """
const services = window.services;
const id = services.viewportGridService.getState().activeViewportId;
const viewport = services.cornerstoneViewportService.getCornerstoneViewport(id);
const shown = services.segmentationService.getSegmentationRepresentations(id);
"""
_SEGMENTS = f"""{_VIEWPORT}
return shown.length ? Object.values(shown[0].segments).map(one => [one.segmentIndex, one.color.slice(0, 3)]) : null;
"""
# Segments are drawn some frames after they change; a loaded machine takes long for one.
_DRAWN = """
const drawn = async () => {
  for (let frame = 0; frame < 3; frame++)
    await new Promise(resolve => {
      viewport.element.addEventListener('CORNERSTONE_IMAGE_RENDERED', () => setTimeout(resolve, 150), { once: true });
      viewport.render();
    });
};
"""
# Nearest-neighbour interpolation, so that a grey level is that of one voxel.
_SHOW_SLICE = f"""{_VIEWPORT}{_DRAWN}
const [given, done] = arguments;
(async () => {{
  const [index, lower, upper] = given;
  await viewport.setImageIdIndex(index);
  viewport.setProperties({{ voiRange: {{ lower, upper }}, interpolationType: 0 }});
  // A slice that was shown before keeps its texture, and so its interpolation, unless its data changes.
  viewport.getDefaultActor().actor.getMapper().getInputData().modified();
  await drawn();
  return viewport.getCurrentImageId();
}})().then(done, error => done('error: ' + error));
"""
_SET_VISIBLE = f"""{_VIEWPORT}{_DRAWN}
const [visible, done] = arguments;
for (const index of Object.keys(shown[0].segments))
  services.segmentationService.setSegmentVisibility(id, shown[0].segmentationId, Number(index), visible);
drawn().then(done);
"""


class Viewer:
    """A study in the viewer. Pictures are (height, width, 3) uint8 arrays of the viewport."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open_study(self, address: str, study: str) -> None:
        """Open a study and wait for its first image."""
        self.driver.get(f"{address}/viewer?StudyInstanceUIDs={study}")
        self._wait(lambda: self.driver.execute_script(_STUDY_IS_SHOWN), "the study")

    def open_segmentation(self) -> dict[int, tuple[int, int, int]]:
        """Open the study's segmentation as a reader would, by a double click; the colour of each segment."""
        found = self._wait(self._segments_after_click, "the segmentation")
        return {int(index): tuple(colour) for index, colour in found}

    def _segments_after_click(self):
        """The segments, after a double click on their series; a click while the page still loads does nothing."""
        thumbnails = self.driver.find_elements("css selector", "[data-cy^='study-browser-thumbnail']")
        found = [one for one in thumbnails if one.text.startswith("SEG")]
        if found:
            ActionChains(self.driver).double_click(found[0]).perform()
        until = time.monotonic() + 15
        while time.monotonic() < until:
            if segments := self.driver.execute_script(_SEGMENTS):
                return segments
            time.sleep(0.5)
        return None

    def count_slices(self) -> int:
        """The number of slices in the viewport."""
        return int(self.driver.execute_script(f"{_VIEWPORT} return viewport.getNumberOfSlices();"))

    def show_slice(self, index: int, window: tuple[int, int]) -> str:
        """Show slice `index`, from 0, in a window (lowest, highest); what the viewer calls its image."""
        name = self.driver.execute_async_script(_SHOW_SLICE, [index, *window])
        if name.startswith("error"):
            raise RuntimeError(f"OHIF cannot show slice {index + 1}: {name}")
        return name

    def picture(self, with_segments: bool) -> np.ndarray:
        """What the viewport draws, with or without the segments; not the texts above it."""
        self.driver.execute_async_script(_SET_VISIBLE, with_segments)
        drawn = self.driver.execute_script(f"{_VIEWPORT} return viewport.canvas.toDataURL('image/png');")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.split(",")[1]))).convert("RGB"))

    def screenshot(self, path) -> None:
        """Save the whole window as a PNG file."""
        self.driver.save_screenshot(str(path))

    def _wait(self, ready, what):
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            if found := ready():
                return found
            time.sleep(0.5)
        messages = "\n".join(one["message"] for one in self.driver.get_log("browser")[-20:])
        raise RuntimeError(f"OHIF does not show {what} after {SECONDS} s. Its last messages:\n{messages}")


@contextmanager
def chromium():
    """A viewer in a headless Chromium of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, "--window-size=1400,1000"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(SECONDS)
    try:
        yield Viewer(driver)
    finally:
        driver.quit()
