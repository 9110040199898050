#!/bin/bash
# Video-As-Prompt on one GPU, from rendering to a model:  bash examples/one_gpu/video_as_prompt.sh FOLDER MINUTES
# The same call continues where the last one ended, until FOLDER/model exists. Rehearse it on a CPU first:
#   CLIPS=40 BATCH=4 TRAIN_MINUTES=1 bash examples/one_gpu/video_as_prompt.sh rehearsal 20
# BACKBONE=video-as-prompt/tiny uses the backbone of the built-in model, as AUTOENCODER does by default.
. "$(dirname "$0")/steps.sh"

clips=${CLIPS:-48000} batch=${BATCH:-384} minutes=${TRAIN_MINUTES:-4}
autoencoder=${AUTOENCODER:-video-as-prompt/tiny} backbone=${BACKBONE:-backbone}

precompute latents tiny-latents --set data.num_clips="$clips" --set data.num_random="${RANDOM_CONDITIONS:-1000}" --set device=cpu --model-part "$autoencoder"
if [ "$backbone" = backbone ]; then
  train backbone "$minutes" tiny-backbone --set latents=latents --set settings.batch_size="$batch" \
    --set training.learning_rate=2e-3 --set training.schedule.warmup_steps=100
fi
train expert "$minutes" tiny-expert --set latents=latents --set backbone="$backbone" --set settings.num_references=$(((batch + 7) / 8)) \
  --set training.learning_rate=1.5e-3 --set training.schedule.warmup_steps=100 --set training.ema_decay=0.998
[ -d model ] || sememe assemble tiny-model --set autoencoder="$autoencoder" --set backbone="$backbone" --set expert=expert --output model
say "$PWD/model"
