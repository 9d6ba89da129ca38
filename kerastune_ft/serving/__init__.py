"""Serves SavedModels over HTTP and gRPC, as TensorFlow Serving does, without Docker.

A SavedModel is a program: what it can do, this process can do. Serve only those that you trust, as
TensorFlow itself warns. What clients send is never run, unpickled or taken for a path.

    server.serve(registry.find(Path("runs/mobilenet")), Settings(), say=print)
    client.predict("http://127.0.0.1:8501", "mobilenet", "serving_default", {"image_bytes": [...]})
"""
