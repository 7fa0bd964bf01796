"""What huggingface_hub makes of environments: hub_environment/cases.json. Made with huggingface_hub 0.36.2; 2.4.0 says the same."""
import json, os, subprocess, sys

READ = """
import json
from huggingface_hub import constants as c
from huggingface_hub.utils import _auth, build_hf_headers
print(json.dumps({
    "endpoint": c.ENDPOINT, "cache": c.HF_HUB_CACHE, "offline": c.HF_HUB_OFFLINE, "token": _auth._get_token_from_environment(),
    "token_file": c.HF_TOKEN_PATH, "sends_token": not c.HF_HUB_DISABLE_IMPLICIT_TOKEN, "etag_timeout": c.HF_HUB_ETAG_TIMEOUT,
    "download_timeout": c.HF_HUB_DOWNLOAD_TIMEOUT}))
"""

ENVIRONMENTS = [
    {},
    {"HF_HOME": "/data/hf"},
    {"HF_HOME": "~/hf"}, {"HF_HOME": "~"}, {"HF_HOME": "/data/~/hf"},
    {"HF_HOME": "$PLACE/hf", "PLACE": "/scratch"}, {"HF_HOME": "${PLACE}x/hf", "PLACE": "/scratch"}, {"HF_HOME": "/a/$NOWHERE/b"},
    {"HF_HOME": "/a/${NOWHERE}/$/b$"},
    {"XDG_CACHE_HOME": "/caches"}, {"XDG_CACHE_HOME": "~/caches"}, {"XDG_CACHE_HOME": "/caches", "HF_HOME": "/data/hf"},
    {"HF_HUB_CACHE": "~/hub"}, {"HF_HUB_CACHE": "/hub", "HUGGINGFACE_HUB_CACHE": "/older", "HF_HOME": "/data/hf"},
    {"HUGGINGFACE_HUB_CACHE": "/older"}, {"HUGGINGFACE_HUB_CACHE": "~/older", "HF_HOME": "/data/hf"},
    {"HF_HUB_CACHE": "relative/hub"},
    {"HF_TOKEN": "hf_a"}, {"HF_TOKEN": " hf_a\n"}, {"HF_TOKEN": "hf_\r\na"}, {"HF_TOKEN": ""}, {"HF_TOKEN": " \n "},
    {"HUGGING_FACE_HUB_TOKEN": "hf_b"}, {"HF_TOKEN": "hf_a", "HUGGING_FACE_HUB_TOKEN": "hf_b"},
    {"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "hf_b"}, {"HF_TOKEN": " ", "HUGGING_FACE_HUB_TOKEN": "hf_b"},
    {"HF_TOKEN_PATH": "~/secrets/token"}, {"HF_TOKEN_PATH": "/run/token", "HF_HOME": "/data/hf"},
    {"HF_TOKEN": "hf_a", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, {"HF_TOKEN": "hf_a", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"},
    *({"HF_HUB_OFFLINE": value} for value in ["1", "0", "true", "True", "YES", "on", "off", "no", "false", "2", "", " 1", "y"]),
    {"TRANSFORMERS_OFFLINE": "1"}, {"TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "0"}, {"TRANSFORMERS_OFFLINE": "yes", "HF_HUB_OFFLINE": ""},
    {"TRANSFORMERS_OFFLINE": "0", "HF_HUB_OFFLINE": "on"},
    {"HF_ENDPOINT": "https://mirror.example/"}, {"HF_ENDPOINT": "http://localhost:8080//"},
    {"HF_HUB_ETAG_TIMEOUT": "3"}, {"HF_HUB_ETAG_TIMEOUT": "0", "HF_HUB_DOWNLOAD_TIMEOUT": " 40 "},
]

cases = []
for environment in ENVIRONMENTS:
    environment = {"HOME": "/home/someone", **environment}
    out = subprocess.run([sys.executable, "-c", READ], env={**environment, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}, capture_output=True, text=True, check=True)
    cases.append({"environment": environment, **json.loads(out.stdout)})
folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hub_environment")
os.makedirs(folder, exist_ok=True)
with open(os.path.join(folder, "cases.json"), "w") as file:
    file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
