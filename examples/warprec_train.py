"""WarpRec's train pipeline with fastseq's models: python examples/warprec_train.py CONFIG.yaml"""

import sys

import fastseq.warprec

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    fastseq.warprec.install()
    from warprec.pipelines import train_pipeline

    train_pipeline(sys.argv[1])
