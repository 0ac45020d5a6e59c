default_scope = "mmseg"

env_cfg = dict(
    cudnn_benchmark=True,  # every crop has the same size
    # Each data worker is a process of its own: OpenCV's threads would only compete with it.
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)  # the kit takes gloo where there is no GPU

# Without a fixed seed a resumed session would draw a new one, and walk another permutation.
randomness = dict(seed=0)

vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(type="SegLocalVisualizer", vis_backends=vis_backends, name="visualizer")
log_processor = dict(by_epoch=False)
log_level = "INFO"

load_from = None
resume = False
