"""Makes `bucket` in a moto server, and somebody who may do everything with it; prints that one's keys. Called by s3.rs."""

import json
import sys
import urllib.request

import boto3

url, is_closed = sys.argv[1], sys.argv[2] == "closed"
anybody = {
    "endpoint_url": url,
    "region_name": "us-east-1",
    "aws_access_key_id": "anybody",
    "aws_secret_access_key": "anybody",
}
boto3.client("s3", **anybody).create_bucket(Bucket="bucket")
iam = boto3.client("iam", **anybody)
iam.create_user(UserName="me")
statement = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
iam.put_user_policy(UserName="me", PolicyName="all", PolicyDocument=policy)
key = iam.create_access_key(UserName="me")["AccessKey"]
if is_closed:
    # From now on it looks at signatures.
    plain = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{url}/moto-api/reset-auth", data=b"0", headers=plain)
    urllib.request.urlopen(request).read()
print(key["AccessKeyId"] + ":" + key["SecretAccessKey"])
