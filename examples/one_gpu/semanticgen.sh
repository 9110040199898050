#!/bin/bash
# SemanticGen on one GPU, from rendering to a model:  bash examples/one_gpu/semanticgen.sh FOLDER MINUTES
# The same call continues where the last one ended, until FOLDER/model exists. Keep FOLDER between machines, or make one
# call with all of a machine's time: a fresh folder starts from the beginning. Rehearse it on a CPU first:
#   CLIPS=16 BATCH=2 TRAIN_MINUTES=1 bash examples/one_gpu/semanticgen.sh rehearsal 20
# ENCODER=semanticgen/tiny uses the built-in model's encoder, and trains neither an encoder nor a reader.
. "$(dirname "$0")/steps.sh"

clips=${CLIPS:-24000} batch=${BATCH:-128} minutes=${TRAIN_MINUTES:-8} encoder=${ENCODER:-encoder} dataset=null

if [ "$encoder" = encoder ]; then
  dataset=frames
  precompute scenes tiny-encoder-frames --set data.num_clips=$((2 * clips)) --set device=cpu
  precompute frames tiny-semantic-frames --set data.num_clips="$clips" --set device=cpu
  train encoder "${ENCODER_MINUTES:-3}" tiny-semantic-encoder --set frames=scenes --set settings.batch_size=$((2 * batch))
fi
precompute latents tiny-semantic-latents --set data.num_clips="$clips" --set dataset="$dataset" --set semantic_encoder="$encoder"

# In parallel. The renderer's training hardly changes the text encoder, so the planner can already use it.
others=()
if [ "$encoder" = encoder ]; then
  train reader "$minutes" tiny-reader --set frames=frames --set settings.batch_size=$(((batch + 1) / 2)) & others+=($!)
fi
train renderer "$minutes" tiny-renderer --set latents=latents --set encoder="$encoder" --set settings.batch_size="$batch" \
  --set settings.captions.drop_target_caption=0.3 --set settings.plan_noise_tau=0.4 --set settings.image_share=0.15 \
  --set training.learning_rate=1.2e-3 --set training.schedule.warmup_steps=40 --set training.ema_decay=0.998 \
  --set "training.learning_rate_factors=text_encoder*:1e-6" & renderer=$!
while [ ! -e renderer/log.jsonl ] && kill -0 "$renderer" 2> /dev/null; do sleep 1; done
train planner "$minutes" tiny-planner --set latents=latents --set renderer=renderer/start --set settings.batch_size=$((2 * batch)) \
  --set training.schedule.warmup_steps=100 --set training.ema_decay=0.998 & planner=$!
finish "${others[@]}" "$renderer" "$planner"

[ -d model ] || sememe assemble tiny-semanticgen --set encoder="$encoder" --set renderer=renderer --set planner=planner --output model
say "$PWD/model"
