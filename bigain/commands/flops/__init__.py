"""`bigain flops`: what a compressor costs, counted without weights. The help is here, apart from heavy imports."""

HELP = """usage: bigain flops [--model M] [--compressor C --compressor.OPTION X ...] [--match P%] [--json]

Count the FLOPs of one network evaluation at batch 1, without weights: in all, by category, and how much less than
without compression. 2 FLOPs per multiply-add; matrix products, attention and convolutions.

options:
  --model M        sd2 (default), dit_xl_2_512, a shipped configuration (sd21, shapes_dit, ...), a diffusers folder
                   (weights are not needed) or a hub id
  --compressor C   ToMe, LGTM, CAM, ABM, SiTo, ToDo, AveragePool, IEKVD, FrequencyKV, the import path of a class, or a
                   file; left out, the model is counted as it is
  --compressor.OPTION X
                   every argument of its class, nested too: --compressor.ratio 0.7, --compressor.where.blocks "[1,2,3]",
                   --compressor CAM --compressor.inner LGTM --compressor.inner.ratio 0.7
  --compressor.help C
                   the arguments of a class
  --image_size S   side of the images in px; the default is what the model was trained on
  --match P%       find the ratio or factor of each method, or of the given compressor, that reduces by P percent
  --json           one JSON object instead of text
"""
