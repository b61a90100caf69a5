"""The small package behind the notebooks; helpers/README.md shows its rooms."""
import logging
import warnings

# Complaints at import that a student can do nothing about: torch's about the pynvml that LMDeploy brings, tqdm's about
# progress widgets, and bitsandbytes' about a kernel that it would fetch from a hub.
warnings.filterwarnings("ignore", "The pynvml package is deprecated")
warnings.filterwarnings("ignore", "IProgress not found")
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
