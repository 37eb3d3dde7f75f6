"""Universal state dicts: plain keys and merged weights from any adapted model, and back into any."""

from lit_wsl.models.universal.api import LoadReport as LoadReport
from lit_wsl.models.universal.api import check_adapters as check_adapters
from lit_wsl.models.universal.api import find_layout as find_layout
from lit_wsl.models.universal.api import get_merged_state_dict as get_merged_state_dict
from lit_wsl.models.universal.api import load_universal as load_universal
