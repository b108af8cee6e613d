// The metadata services of three clouds, as far as they are asked; answers are those of their documentation.
import {once} from 'node:events';
import {createServer, type IncomingMessage, type ServerResponse} from 'node:http';
import type {AddressInfo} from 'node:net';
import type {ExecutionContext} from 'ava';

export interface MetadataService {
	readonly endpoint: string;
	readonly requests: readonly string[];
	/** Takes requests and says nothing, until it is ended. */
	hang(isOn: boolean): void;
	/** What it says instead, whatever it is asked. */
	answer: ((request: IncomingMessage, response: ServerResponse) => void) | undefined;
	zone: string;
}

export async function startMetadataService(
	t: ExecutionContext,
	cloud: 'aws' | 'gce' | 'azure',
): Promise<MetadataService> {
	const requests: string[] = [];
	let isHanging = false;
	const hanging = new Set<() => void>();
	const server = createServer((request, response) => {
		requests.push(`${request.method} ${request.url}`);
		const say = () => (service.answer ?? answers[cloud](service))(request, response);
		if (isHanging) hanging.add(say);
		else say();
	}).listen(0, '127.0.0.1');
	await once(server, 'listening');
	t.teardown(() => {
		server.closeAllConnections();
		server.close();
	});
	const service: MetadataService = {
		endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
		requests,
		hang: isOn => {
			isHanging = isOn;
			if (isOn) return;
			for (const say of hanging) say();
			hanging.clear();
		},
		answer: undefined,
		zone: 'a',
	};
	return service;
}

type Answer = (service: MetadataService) => (request: IncomingMessage, response: ServerResponse) => void;

const answers: Readonly<Record<'aws' | 'gce' | 'azure', Answer>> = {
	aws: service => (request, response) => {
		const {method, url, headers} = request;
		if (method === 'PUT' && url === '/latest/api/token')
			// Behind a proxy nobody gets one.
			response
				.writeHead(headers['x-aws-ec2-metadata-token-ttl-seconds'] && !headers['x-forwarded-for'] ? 200 : 403)
				.end('tok==');
		else if (headers['x-aws-ec2-metadata-token'] !== 'tok==') response.writeHead(401).end();
		else if (url === '/latest/dynamic/instance-identity/document')
			response.end(
				JSON.stringify({
					...{accountId: '123456789012', architecture: 'x86_64', availabilityZone: `us-east-1${service.zone}`},
					...{imageId: 'ami-5fb8c835', instanceId: 'i-1234567890abcdef0', instanceType: 't2.micro'},
					...{privateIp: '10.158.112.84', region: 'us-east-1', version: '2017-09-30', devpayProductCodes: null},
				}),
			);
		else response.writeHead(404).end();
	},
	gce: service => (request, response) => {
		const values: Readonly<Record<string, string>> = {
			zone: `projects/12345/zones/europe-west4-${service.zone}`,
			id: '3561235981231234567',
			'machine-type': 'projects/12345/machineTypes/n1-standard-1',
			'network-interfaces/0/ip': '10.164.0.2',
		};
		const value = values[request.url!.replace('/computeMetadata/v1/instance/', '')];
		if (request.headers['metadata-flavor'] !== 'Google') response.writeHead(403).end();
		else if (value === undefined) response.writeHead(404).end();
		else response.writeHead(200, {'Metadata-Flavor': 'Google', 'Content-Type': 'application/text'}).end(value);
	},
	azure: service => (request, response) => {
		const url = new URL(request.url!, 'http://x');
		if (request.headers['metadata'] !== 'true') response.writeHead(400).end('{"error": "Bad request"}');
		else if (url.searchParams.get('api-version') !== '2021-02-01') response.writeHead(400).end();
		else if (url.pathname === '/metadata/instance/compute')
			response.end(
				JSON.stringify({
					...{azEnvironment: 'AzurePublicCloud', location: 'westus', name: 'vm', platformFaultDomain: '36'},
					...{
						vmId: '02aab8a4-74ef-476e-8182-f6d2ba4166a6',
						vmSize: 'Standard_A3',
						zone: service.zone === 'a' ? '1' : '',
					},
				}),
			);
		else if (url.pathname === '/metadata/instance/network/interface/0/ipv4/ipAddress/0/privateIpAddress')
			response.end('10.144.133.132');
		else response.writeHead(404).end();
	},
};
