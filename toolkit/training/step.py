"""One training step: the only place that computes gradients of the loss and applies them."""

from toolkit.data.loading.batches import Batch
from toolkit.strategies.base import Loss, Phase
from toolkit.training.train_state import TrainState


def train_step(state: TrainState, batch: Batch, phase: Phase, learning_rate: float) -> Loss:
    """Train on one micro-batch; the weights change after the last micro-batch of an optimizer step."""
    accelerator, model, optimizer = state.accelerator, state.model, state.optimizer
    task = state.tasks[phase.regularization]
    images, targets = state.receive(batch, task)
    with accelerator.accumulate(model):
        logits = model(*state.views(images, batch.step.sizes))  # one forward pass for all scales
        loss = state.strategy.loss(logits, targets, task, phase, batch.step)
        state.non_finite.see_loss(batch.number, loss.total)
        accelerator.backward(loss.total)
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(model.parameters(), state.gradient_clip)
            state.non_finite.see_gradient(batch.number, norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group.get("lr_scale", 1.0)  # timm's factor of a layer
            scale = state.gradient_scale()
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.sync_gradients:
            scale_now = state.gradient_scale()
            state.non_finite.see_scale(batch.number, scale_now)
            if scale_now >= scale:
                state.weights.follow()
                state.running_means.add({"gradient_norm": norm, "clipped_share": norm > state.gradient_clip})
    return loss
