"""A Hugging Face model of any source -> a TransformerBridge to train."""

from recovery_probe.models.devices import lent_generators as lent_generators
from recovery_probe.models.devices import pick_device as pick_device
from recovery_probe.models.loading import load as load
from recovery_probe.models.model import Model as Model
from recovery_probe.models.tokenizer import train_tokenizer as train_tokenizer
