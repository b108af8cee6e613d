import {isIP} from 'node:net';
import type {CloudName} from './detect.ts';
import type {AskMetadata} from './request.ts';

/** What a cloud says of the machine; '' for what it does not. */
export interface CloudFacts {
	readonly cloud: CloudName;
	/** `REGION/ZONE`, as Kubernetes labels the nodes of that cloud, so that both are one locality to the mesh. */
	readonly locality: string;
	readonly instanceId: string;
	readonly instanceType: string;
	/** First private one of the first network card. */
	readonly address: string;
}

/** @throws Error when the service does not answer, or with something else */
export const fetchFacts = (cloud: CloudName, ask: AskMetadata): Promise<CloudFacts> => providers[cloud](ask);

const providers: Readonly<Record<CloudName, (ask: AskMetadata) => Promise<CloudFacts>>> = {
	aws: fetchAws,
	gce: fetchGce,
	azure: fetchAzure,
};

/** IMDSv2: nothing without a token, which is asked for by PUT, so that a proxy that is fooled gets none. */
async function fetchAws(ask: AskMetadata): Promise<CloudFacts> {
	const token = await ask({
		method: 'PUT',
		path: '/latest/api/token',
		headers: {'x-aws-ec2-metadata-token-ttl-seconds': '60'},
	});
	if (!/^[\x21-\x7e]{1,512}$/.test(token)) throw new Error('PUT /latest/api/token: the answer is no token');
	const document = parseMap(
		await ask({path: '/latest/dynamic/instance-identity/document', headers: {'x-aws-ec2-metadata-token': token}}),
	);
	return {
		cloud: 'aws',
		locality: joinLocality(document['region'], document['availabilityZone']),
		instanceId: word(document['instanceId']),
		instanceType: word(document['instanceType']),
		address: address(document['privateIp']),
	};
}

/** Single values: the whole holds what users have put there, SSH keys and scripts. */
async function fetchGce(ask: AskMetadata): Promise<CloudFacts> {
	const get = (name: string) =>
		ask({
			path: `/computeMetadata/v1/instance/${name}`,
			headers: {'metadata-flavor': 'Google'},
			expected: ['metadata-flavor', 'Google'],
		});
	const [zonePath, id, typePath, ip] = await Promise.all([
		get('zone'),
		get('id'),
		get('machine-type'),
		get('network-interfaces/0/ip'),
	]);
	// projects/NUMBER/zones/REGION-LETTER
	const zone = lastPart(zonePath);
	return {
		cloud: 'gce',
		locality: joinLocality(zone.replace(/-[^-]*$/, ''), zone),
		instanceId: word(id),
		instanceType: word(lastPart(typePath)),
		address: address(ip),
	};
}

async function fetchAzure(ask: AskMetadata): Promise<CloudFacts> {
	const get = (path: string, format: string) =>
		ask({path: `/metadata/instance/${path}?api-version=2021-02-01&format=${format}`, headers: {metadata: 'true'}});
	const [text, ip] = await Promise.all([
		get('compute', 'json'),
		get('network/interface/0/ipv4/ipAddress/0/privateIpAddress', 'text'),
	]);
	const compute = parseMap(text);
	const region = word(compute['location']).toLowerCase();
	const zone = word(compute['zone']);
	return {
		cloud: 'azure',
		// Nodes without an availability zone are labelled with their fault domain.
		locality: joinLocality(region, zone ? `${region}-${zone}` : compute['platformFaultDomain']),
		instanceId: word(compute['vmId']),
		instanceType: word(compute['vmSize']),
		address: address(ip),
	};
}

/** As Istio's own agent tells them in PLATFORM_METADATA (pkg/bootstrap/platform). */
export function platformOf({cloud, locality, instanceId, instanceType}: CloudFacts): Readonly<Record<string, string>> {
	const [region = '', zone = ''] = locality.split('/');
	const named = {
		aws: {aws_region: region, aws_availability_zone: zone, aws_instance_id: instanceId},
		gce: {gcp_location: zone, gcp_gce_instance_id: instanceId},
		azure: {azure_location: region, azure_vmId: instanceId, azure_vmSize: instanceType},
	}[cloud];
	return Object.fromEntries(Object.entries(named).filter(([, value]) => value !== ''));
}

/** @throws Error when there is no region: then it is not what we asked for */
function joinLocality(region: unknown, zone: unknown): string {
	const [name, within] = [word(region), word(zone)];
	if (!name) throw new Error('the metadata service names no region');
	return within ? `${name}/${within}` : name;
}

/** It becomes part of names and labels; what is neither is left out. */
const word = (value: unknown): string =>
	typeof value === 'string' && /^[\w.-]{1,128}$/.test(value.trim()) ? value.trim() : '';

const address = (value: unknown): string => (typeof value === 'string' && isIP(value.trim()) ? value.trim() : '');

const lastPart = (path: string): string => path.trim().split('/').at(-1)!;

function parseMap(text: string): Readonly<Record<string, unknown>> {
	const value: unknown = JSON.parse(text);
	return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}
