"""Networks, and how they are asked: loading and saving, log-probabilities, what frozen models say of a batch.

Policies and reward models are ordinary Hugging Face models. `forward` holds the only one-token shift of the
package and the float32 head; `load` reads and writes folders that other tools read; `adapt` puts LoRA on a
model and takes it off again for a moment, `singular` moves its singular values alone, `int8` has the frozen
layers reckon in eight bits; `soup` averages weights; `tiny` builds models small enough for a test.
"""
