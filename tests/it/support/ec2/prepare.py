"""Makes two machines, a disk and a snapshot of it in a moto server, and somebody who may do everything with them; from then on it looks at
signatures. Prints that one's keys, and the ids. Called by ec2.rs."""

import json
import sys
import urllib.request

import boto3

url = sys.argv[1]
anybody = {
    "endpoint_url": url,
    "region_name": "us-east-1",
    "aws_access_key_id": "anybody",
    "aws_secret_access_key": "anybody",
}
ec2 = boto3.client("ec2", **anybody)
# An image that moto knows by itself.
machines = ec2.run_instances(ImageId="ami-12c6146b", MinCount=2, MaxCount=2)["Instances"]
zone = machines[0]["Placement"]["AvailabilityZone"]
disk = ec2.create_volume(Size=1, AvailabilityZone=zone)["VolumeId"]
snapshot = ec2.create_snapshot(VolumeId=disk)["SnapshotId"]
iam = boto3.client("iam", **anybody)
iam.create_user(UserName="me")
statement = {"Effect": "Allow", "Action": "ec2:*", "Resource": "*"}
policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
iam.put_user_policy(UserName="me", PolicyName="all", PolicyDocument=policy)
key = iam.create_access_key(UserName="me")["AccessKey"]
plain = {"Content-Type": "text/plain"}
request = urllib.request.Request(f"{url}/moto-api/reset-auth", data=b"0", headers=plain)
urllib.request.urlopen(request).read()
ids = [machine["InstanceId"] for machine in machines] + [zone, disk, snapshot]
print(" ".join([key["AccessKeyId"] + ":" + key["SecretAccessKey"], *ids]))
