export {
	type AdsProtocol,
	type AdsStream,
	type ControlPlane,
	type ControlPlaneDeps,
	createControlPlane,
} from './control-plane.ts';
export {buildNode, encodeNode, type Node, type NodeSettings} from './node-metadata.ts';
export {explainRefusal, type Mender, type RefusalContext} from './refusals.ts';
export {formatEndpoint, type Lookup, resolveEndpoint, systemLookup} from './resolve.ts';
export {type ClientCertificate, isPresentable, loadRoots, serverNameOf} from './tls.ts';
