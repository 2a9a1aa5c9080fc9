"""`bigain bench`: what a compressor saves by the clock. The help is here, apart from heavy imports."""

HELP = """usage: bigain bench [--model M] [--compressor C [--compressor.OPTION X ...]] [--compressor ...] [options]

Time one forward of a network with each of several compressors and without, in turns, and say how much of the saving
that the FLOPs promise is real: (1 - measured ratio) / (1 - promised ratio).

options:
  --model M          sd2 (default), dit_xl_2_512, a shipped configuration (sd21, shapes_dit, ...), a diffusers folder or
                     a hub id; weights are read from a folder that has them, and random otherwise: nothing is downloaded
                     but sizes
  --compressor C     may be given several times: ToMe, LGTM, CAM, ABM, SiTo, ToDo, AveragePool, IEKVD, FrequencyKV, the
                     import path of a class, or a file such as compressors/lgtm.yaml; left out: LGTM and ABM at ratio
                     0.7 and IEKVD at factor 2
  --compressor.OPTION X
                     an argument of the compressor before it, as in bigain flops:
                     --compressor LGTM --compressor.ratio 0.7 --compressor IEKVD --compressor.factor 2
  --image_size S     side of the images in px; the default is what the model was trained on
  --batch B          rows of a forward (2)
  --dtype D          bfloat16 (default), float16, float32
  --device D         cpu, cuda, cuda:1, ...; the default is a GPU if there is one
  --threads N        of a CPU; the default is torch's
  --repetitions N    rounds that are measured (5); in each, every method runs in turn, in changing order
  --compile HOW      none (default), whole, or regional: each transformer block by itself
  --channels-last    memory format of convolutions
  --json             one JSON object instead of text; progress goes to stderr
"""
