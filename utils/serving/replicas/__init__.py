"""Several servers as one, under Ray Serve: each replica is the server of `run_inference_gradio.py`.

`front` takes requests, `router` chooses the replica that knows the prompt's beginning or is least
busy, `replica` keeps a server running and passes requests on to it. Ray restarts a replica that
dies, and starts more where requests queue.
"""
