"""OpenAI's API on the engine: completions, chat, models, tokens, metrics.

`addresses` says what is reached and in which form bodies and errors are; `schema` what a body may
have, made from the settings of `utils.generation`; `batch` runs the choices of one request;
`completions` and `chat` answer. Errors are `errors.ApiError` in here and OpenAI's form outside.
"""
