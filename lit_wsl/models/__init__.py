"""Models: where their files are, and the adapters that train them."""

from lit_wsl.models.lora import LoraSpec as LoraSpec
from lit_wsl.models.lora import inject_lora as inject_lora
from lit_wsl.models.lora import save_adapter as save_adapter
from lit_wsl.state.locate import model_dir as model_dir
