"""Imported once by the server that test processes are forked from: all that a run imports, and no thread."""

import torch
import transformers.models.gpt_neox.modeling_gpt_neox
from transformers import AutoModelForCausalLM

import rewarm.commands.train
import rewarm.training.run

torch.set_num_threads(1)
__all__ = ["AutoModelForCausalLM", "rewarm", "transformers"]
