"""The power that NVIDIA GPUs draw while something runs, from nvidia-smi; nothing elsewhere."""

import os
import shutil
import statistics
import subprocess

EVERY_MS = 100


class Meter:
  """Samples the power during a `with` block.

  It is that of the GPUs in CUDA_VISIBLE_DEVICES, or of all. `command` prints one number of watts
  per GPU and line, again and again until it is terminated.
  """

  def __init__(self, command: list[str] | None = None):
    self._command = command or nvidia_smi()
    self._process = None
    self._lines: list[str] = []

  def __enter__(self):
    if self._command:
      self._process = subprocess.Popen(
        self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
      )
    return self

  def __exit__(self, *_):
    if self._process:
      self._process.terminate()
      output = self._process.communicate()[0]
      self._lines = output.rpartition('\n')[0].splitlines()  # the last line may be cut

  def facts(self) -> dict[str, float]:
    """{'watts': mean of all GPUs together}, {} if the power is not known."""
    by_gpu: dict[str, list[float]] = {}
    for line in self._lines:
      gpu, _, watts = line.partition(',')
      try:
        by_gpu.setdefault(gpu.strip(), []).append(float(watts))
      except ValueError:  # '[N/A]'
        continue
    found = [statistics.fmean(values) for values in by_gpu.values() if values]
    return {'watts': sum(found)} if found else {}


def nvidia_smi() -> list[str]:
  """The command; [] where there is none."""
  path = shutil.which('nvidia-smi')
  if not path:
    return []
  visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
  command = [path, '--query-gpu=index,power.draw', '--format=csv,noheader,nounits']
  return [*command, f'--loop-ms={EVERY_MS}', *([f'--id={visible}'] if visible else [])]
